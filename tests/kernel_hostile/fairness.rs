//! Two sandboxes that use all CPU time they can get, and how much each gets. The bounds are wide
//! because the machine has other work; compared values come from the same seconds.

use std::time::{Duration, Instant};

use ash_model::{Limits, TenantId};
use ash_protocol::init::SpawnSpec;
use ash_protocol::launcher::Create;
use ashd::sandbox::usage::Usage;
use ashd::sandbox::{Launcher, Sandbox};

use crate::host::{Host, output, request, spec};

const MEASURED: Duration = Duration::from_secs(4);

/// Twice as many threads as any test host has cores for a sandbox.
fn burner() -> SpawnSpec {
    spec("for n in 1 2 3 4 5 6 7 8; do while :; do :; done & done; wait")
}

async fn burning(host: &Host, launcher: &Launcher, tenant: &str, limits: Limits) -> Sandbox {
    let tenant: TenantId = tenant.parse().expect("a tenant");
    let create = Create { tenant, ..request(host.session(), limits) };
    let sandbox = launcher.create(create).await.unwrap_or_else(|error| panic!("{error}\n{}", host.log()));
    let file = tempfile::NamedTempFile::new().expect("output");
    let (out, err) = output(file.path());
    sandbox.spawn(1, &burner(), out, err).await.expect("spawned");
    sandbox
}

/// Cores used by each while both ran, and how often each was throttled.
async fn compare(one: &Sandbox, other: &Sandbox) -> [(f64, u64); 2] {
    let read = |sandbox: &Sandbox| {
        let cpu = Usage::read(&sandbox.info.cgroup).cpu;
        (cpu.usage_us.expect("counted"), cpu.throttled_periods.unwrap_or(0))
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (start, before) = (Instant::now(), [read(one), read(other)]);
    tokio::time::sleep(MEASURED).await;
    let (took, after) = (start.elapsed(), [read(one), read(other)]);
    [0, 1].map(|at| ((after[at].0 - before[at].0) as f64 / took.as_micros() as f64, after[at].1 - before[at].1))
}

fn free() -> Limits {
    let cores = std::thread::available_parallelism().expect("cores").get() as u64;
    Limits { cpu_millis: cores * 1000, ..Limits::default() }
}

#[tokio::test]
async fn equal_weights_are_equal_shares_within_a_tenant_and_between_two() {
    let host = Host::start("fair");
    let launcher = host.client().await;
    for (one, other) in [("acme", "acme"), ("acme", "zeta")] {
        let pair = [burning(&host, &launcher, one, free()).await, burning(&host, &launcher, other, free()).await];
        let [(a, _), (b, _)] = compare(&pair[0], &pair[1]).await;
        println!("{one}, {other}: {a:.2} and {b:.2} cores");
        assert!((0.6..1.7).contains(&(a / b)), "{one}, {other}: {a:.2} and {b:.2} cores");
        for sandbox in pair {
            launcher.destroy(sandbox.id()).await.expect("destroyed");
        }
    }
}

#[tokio::test]
async fn a_weight_of_four_is_four_times_the_share() {
    let host = Host::start("weight");
    let launcher = host.client().await;
    let heavy = burning(&host, &launcher, "acme", Limits { cpu_weight: 400, ..free() }).await;
    let light = burning(&host, &launcher, "acme", Limits { cpu_weight: 100, ..free() }).await;
    let [(a, _), (b, _)] = compare(&heavy, &light).await;
    println!("weights 400 and 100: {a:.2} and {b:.2} cores");
    assert!((2.2..7.0).contains(&(a / b)), "{a:.2} and {b:.2} cores");
    for sandbox in [heavy, light] {
        launcher.destroy(sandbox.id()).await.expect("destroyed");
    }
}

#[tokio::test]
async fn who_is_at_its_limit_takes_nothing_beyond_it_from_another() {
    let host = Host::start("bounded");
    let launcher = host.client().await;
    // The heavier one: its weight must not exceed its limit.
    let bounded =
        burning(&host, &launcher, "acme", Limits { cpu_millis: 50, cpu_weight: 1000, ..Limits::default() }).await;
    let other = burning(&host, &launcher, "acme", Limits { cpu_millis: 1000, ..Limits::default() }).await;
    let [(a, throttled), (b, _)] = compare(&bounded, &other).await;
    println!("limits 0.05 and 1 core: {a:.2} and {b:.2} cores, throttled {throttled} times");
    assert!((0.01..0.08).contains(&a) && throttled > 10, "{a:.2} cores, throttled {throttled} times");
    assert!(b > 2.0 * a && b < 1.2, "{b:.2} cores beside {a:.2}");
    for sandbox in [bounded, other] {
        launcher.destroy(sandbox.id()).await.expect("destroyed");
    }
}
