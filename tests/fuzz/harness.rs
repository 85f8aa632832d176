//! Runs one target: first its corpus, then mutated samples until the time is over. Each target has
//! its own process.
//!
//! ```text
//!   test --starts--> the same program again, for this target --before each input--> <directory>/input
//!    |                  |                                                              |
//!    +--- it failed <---+  panic on any thread, abort, stack overflow, too much        |
//!    |                     memory or time for one input                                |
//!    +--- saves the input in corpus/<target>/found-<hash>, which is replayed first <---+
//! ```

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, UsageWho, getrusage, setrlimit};
use peak_alloc::PeakAlloc;

use crate::mutate::{Random, mutated};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Seconds of all targets together, and the variable that changes it.
const SECONDS: u64 = 120;
const SECONDS_VARIABLE: &str = "ASH_FUZZ_SECONDS";
const SEED_VARIABLE: &str = "ASH_FUZZ_SEED";
/// Marks the process of a target: the directory for its input.
const CHILD: &str = "ASH_FUZZ_DIRECTORY";

/// Address space of a target's process: an unbounded allocation fails.
const ADDRESS_SPACE: u64 = 8 << 30;
/// CPU time for one input, and for each further MiB of it. The slowest target takes 1.3 s for 1
/// MiB, unoptimised on a shared core; a parser with quadratic time takes minutes.
const INPUT_CPU: Duration = Duration::from_secs(5);
/// Wall-clock time after which an input hangs, on a shared host.
const HANG: Duration = Duration::from_secs(30);

type Run = Box<dyn FnMut(&[u8])>;

/// The input of one parser, or of a few that read the same bytes.
pub struct Target {
    pub words: &'static [&'static str],
    /// Bytes of heap that one input may take, plus bytes for each byte of it.
    pub heap: (usize, usize),
    pub run: Run,
}

impl Target {
    pub fn new(words: &'static [&'static str], run: impl FnMut(&[u8]) + 'static) -> Self {
        Self { words, heap: (4 << 20, 32), run: Box::new(run) }
    }

    pub fn heap(mut self, least: usize, factor: usize) -> Self {
        self.heap = (least, factor);
        self
    }
}

pub fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name)
}

/// The test of one target out of `count`.
pub fn fuzz(name: &'static str, count: usize, make: fn() -> Target) {
    if let Some(directory) = std::env::var_os(CHILD) {
        return child(name, count, make, Path::new(&directory));
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(std::env::current_exe().expect("the path of this program"));
    let output = command.args([name, "--exact", "--nocapture"]).env(CHILD, directory.path()).output();
    let output = output.expect("this program starts again");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if output.status.success() {
        return said.lines().filter(|line| line.starts_with("fuzz ")).for_each(|line| eprintln!("{line}"));
    }
    let input = read_input(directory.path());
    let saved = save(name, &input);
    let shown = String::from_utf8_lossy(&input[..input.len().min(2000)]).into_owned();
    panic!(
        "target {name} failed ({}) on an input of {} bytes, saved as {saved}. It is replayed first from now on.\n\
         --- the input, up to 2000 bytes\n{shown:?}\n--- what the target said\n{}",
        output.status.signal().map_or_else(|| output.status.to_string(), |signal| format!("signal {signal}")),
        input.len(),
        said.lines().rev().take(60).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n"),
    );
}

fn save(name: &str, input: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let path = corpus(name).join(format!("found-{:016x}", hasher.finish()));
    match std::fs::write(&path, input) {
        Ok(()) => path.display().to_string(),
        Err(error) => format!("nothing ({}: {error})", path.display()),
    }
}

fn read_input(directory: &Path) -> Vec<u8> {
    let all = std::fs::read(directory.join("input")).unwrap_or_default();
    let Some((length, rest)) = all.split_first_chunk::<8>() else { return Vec::new() };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    rest[..length.min(rest.len())].to_vec()
}

/// Ends the process on a panic of any thread, which tasks and routers would catch.
fn end_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::exit(101);
    }));
}

/// `begun`: start of the running input in milliseconds since `start`, plus 1; 0 between two inputs.
fn watch_for_hangs(begun: &Arc<AtomicU64>, start: Instant) {
    let begun = Arc::clone(begun);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let since = begun.load(Ordering::Relaxed);
            let now = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            if since != 0 && now.saturating_sub(since) > HANG.as_millis() as u64 {
                eprintln!("an input runs for more than {HANG:?}");
                std::process::exit(102);
            }
        }
    });
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: expected a whole number")))
}

fn samples(name: &str) -> Vec<(String, Vec<u8>)> {
    let directory = corpus(name);
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|why| panic!("{}: {why}", directory.display()));
    let mut samples: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("an entry of the corpus").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, std::fs::read(&path).expect("a sample"))
        })
        .collect();
    assert!(!samples.is_empty(), "{} is empty", directory.display());
    // Earlier findings come first.
    samples.sort_by_key(|(name, _)| (!name.starts_with("found-"), name.clone()));
    samples
}

fn child(name: &str, count: usize, make: fn() -> Target, directory: &Path) {
    let seconds = number(SECONDS_VARIABLE).unwrap_or(SECONDS) as f64 / count as f64;
    let seed = number(SEED_VARIABLE).unwrap_or(1);
    setrlimit(Resource::RLIMIT_AS, ADDRESS_SPACE, ADDRESS_SPACE).expect("a limit of the own address space");
    setrlimit(Resource::RLIMIT_CORE, 0, 0).expect("a limit of cores");
    end_on_panic();
    let start = Instant::now();
    let begun = Arc::new(AtomicU64::new(0));
    watch_for_hangs(&begun, start);
    let file = File::create(directory.join("input")).expect("a file for the input");
    let Target { words, heap: (least, factor), mut run } = make();
    let mut slowest = (Duration::ZERO, 0);
    let mut largest = (0, 0);
    let mut one = |input: &[u8]| {
        file.write_all_at(&(input.len() as u64).to_le_bytes(), 0).expect("the input is written");
        file.write_all_at(input, 8).expect("the input is written");
        begun.store(1 + start.elapsed().as_millis() as u64, Ordering::Relaxed);
        HEAP.reset_peak_usage();
        let (before, heap) = (cpu_time(), HEAP.current_usage());
        run(input);
        let took = cpu_time().saturating_sub(before);
        let heap = HEAP.peak_usage().saturating_sub(heap);
        begun.store(0, Ordering::Relaxed);
        let bound = INPUT_CPU.mul_f64((input.len() as f64 / f64::from(1 << 20)).max(1.0));
        assert!(
            took <= bound,
            "an input of {} bytes took {took:?} of processor time, more than {bound:?}",
            input.len()
        );
        let bound = least + factor * input.len();
        assert!(heap <= bound, "an input of {} bytes took {heap} bytes of heap, more than {bound}", input.len());
        slowest = slowest.max((took, input.len()));
        largest = largest.max((heap, input.len()));
    };
    let samples = samples(name);
    for (_, sample) in &samples {
        one(sample);
    }
    let samples: Vec<Vec<u8>> = samples.into_iter().map(|(_, sample)| sample).collect();
    let mut random = Random::new(seed);
    let (mut inputs, until) = (samples.len(), start + Duration::from_secs_f64(seconds));
    while Instant::now() < until {
        one(&mutated(&samples, words, &mut random));
        inputs += 1;
    }
    println!(
        "fuzz {name}: seed {seed}, {inputs} inputs in {:.1} s; slowest {:?} for {} bytes, largest heap {} bytes for {} bytes",
        start.elapsed().as_secs_f64(),
        slowest.0,
        slowest.1,
        largest.0,
        largest.1
    );
}

/// Of all threads.
fn cpu_time() -> Duration {
    let used = getrusage(UsageWho::RUSAGE_SELF).expect("the own use of resources");
    let of = |time: nix::sys::time::TimeVal| Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()) as u64);
    of(used.user_time()) + of(used.system_time())
}
