use super::*;

/// Slots as a table: tenant, state, age in seconds. Ids are the positions.
struct Table {
    slots: HashMap<Uuid, Occupant>,
    promises: Promises,
    now: Instant,
}

/// State, whether it is parkable, and its kind of spare.
type Kind = (SandboxState, bool, Option<Spare>);

const TURN: Kind = (SandboxState::Running, false, None);
const IDLING: Kind = (SandboxState::Waiting, false, None);
const PAUSED: Kind = (SandboxState::Waiting, true, None);
const STARTS: Kind = (SandboxState::Warming, false, None);
const WARM: Kind = (SandboxState::Warm, false, Some(Spare::Warm));
const PARKED: Kind = (SandboxState::Warm, false, Some(Spare::Parked));

fn id(n: usize) -> Uuid {
    Uuid::from_u128(n as u128)
}

fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

fn table(rows: &[(&str, Kind, u64)]) -> Table {
    let base = Instant::now();
    let now = base + Duration::from_secs(10_000);
    let slots = rows.iter().enumerate().map(|(n, (name, (state, parkable, spare), age))| {
        let since = now.checked_sub(Duration::from_secs(*age)).unwrap();
        let occupant =
            Occupant { tenant: tenant(name), state: *state, spare: *spare, parkable: *parkable, leaving: false, since };
        (id(n), occupant)
    });
    Table { slots: slots.collect(), promises: Promises::new(), now }
}

impl Table {
    fn decide(&self, asks: &str, max: usize, per_tenant: Option<usize>) -> Decision {
        let rules = Rules { max, per_tenant, evict_after: Duration::from_secs(60) };
        decide(&self.slots, &self.promises, rules, &tenant(asks), self.now)
    }

    /// All evictions in order, if nothing else happens.
    fn order(mut self, asks: &str) -> Vec<usize> {
        let mut order = Vec::new();
        while let Decision::MakeRoom(victim) = self.decide(asks, self.slots.len(), None) {
            order.push((0..100).find(|n| id(*n) == victim).unwrap());
            self.slots.remove(&victim);
            // Another tenant takes the slot: the number of sandboxes stays.
            let filler = Occupant {
                tenant: tenant(asks),
                state: SandboxState::Running,
                spare: None,
                parkable: false,
                leaving: false,
                since: self.now,
            };
            self.slots.insert(Uuid::new_v4(), filler);
        }
        order
    }
}

#[test]
fn a_free_place_is_granted_to_any_tenant() {
    assert_eq!(table(&[("a", TURN, 9)]).decide("a", 2, None), Decision::Grant);
    assert_eq!(table(&[]).decide("a", 1, None), Decision::Grant);
}

#[test]
fn one_tenant_alone_gives_up_what_has_no_session_then_paused_then_long_idle_ones() {
    let rows =
        [("a", TURN, 999), ("a", IDLING, 90), ("a", PAUSED, 5), ("a", PAUSED, 9), ("a", WARM, 1), ("a", PARKED, 1)];
    assert_eq!(table(&rows).order("a"), [5, 4, 3, 2, 1]);
    // Idle for less than `evict_after`, and its own tenant asks.
    let rows = [("a", IDLING, 59), ("a", TURN, 99), ("a", STARTS, 99)];
    assert_eq!(table(&rows).decide("a", 3, None), Decision::Full { owed: false });
}

#[test]
fn the_largest_holder_gives_way_to_one_that_holds_two_less() {
    let rows = [("a", IDLING, 3), ("a", IDLING, 4), ("a", IDLING, 1)];
    assert_eq!(table(&rows).decide("b", 3, None), Decision::MakeRoom(id(1)), "the longest idle one");
    let rows = [("a", IDLING, 1), ("a", IDLING, 1), ("a", TURN, 99)];
    assert_eq!(table(&rows).decide("b", 3, None), Decision::Full { owed: true }, "not between two messages");
    let rows = [("a", TURN, 99), ("a", STARTS, 99), ("a", TURN, 99)];
    assert_eq!(table(&rows).decide("b", 3, None), Decision::Full { owed: true }, "never a turn or a start");
    // One more is no reason: two tenants would evict each other endlessly.
    let rows = [("a", IDLING, 31), ("a", IDLING, 30), ("b", IDLING, 32)];
    assert_eq!(table(&rows).decide("b", 3, None), Decision::Full { owed: false });
    assert_eq!(table(&rows).decide("a", 3, None), Decision::Full { owed: false });
    assert_eq!(table(&rows).decide("c", 3, None), Decision::MakeRoom(id(0)));
}

#[test]
fn the_largest_holder_is_asked_before_the_others() {
    let rows = [("c", PAUSED, 99), ("a", IDLING, 5), ("a", PAUSED, 1), ("a", TURN, 1), ("x", WARM, 1)];
    assert_eq!(
        table(&rows).order("b"),
        [4, 2, 0],
        "sandboxes without a session, then those of `a`, then any tenant's paused one"
    );
}

#[test]
fn one_that_is_leaving_is_not_named_again() {
    let mut table = table(&[("a", PAUSED, 9)]);
    table.slots.get_mut(&id(0)).unwrap().leaving = true;
    assert_eq!(table.decide("b", 1, None), Decision::Full { owed: false });
}

#[test]
fn a_tenants_own_maximum_holds_and_only_its_own_make_room() {
    let rows = [("a", TURN, 9), ("a", TURN, 9), ("b", PAUSED, 99)];
    assert_eq!(table(&rows).decide("a", 100, Some(2)), Decision::TenantFull);
    assert_eq!(table(&rows).decide("b", 100, Some(2)), Decision::Grant);
    let rows = [("a", TURN, 9), ("a", WARM, 9), ("b", PAUSED, 99)];
    assert_eq!(table(&rows).decide("a", 100, Some(2)), Decision::MakeRoom(id(1)));
    let rows = [("a", IDLING, 61), ("a", TURN, 9)];
    assert_eq!(table(&rows).decide("a", 100, Some(2)), Decision::MakeRoom(id(0)));
}

#[test]
fn a_place_that_comes_free_is_kept_for_whoever_holds_least() {
    let mut table = table(&[("a", TURN, 9), ("a", TURN, 9)]);
    let until = table.now + Duration::from_secs(1);
    table.promises.insert(tenant("b"), until);
    assert_eq!(table.decide("a", 3, None), Decision::Full { owed: false }, "the one free place is b's");
    assert_eq!(table.decide("c", 3, None), Decision::Grant, "c holds no more than b");
    assert_eq!(table.decide("b", 3, None), Decision::Grant);
    assert_eq!(table.decide("a", 4, None), Decision::Grant, "there are two");
    table.now = until;
    assert_eq!(table.decide("a", 3, None), Decision::Grant, "a promise ends");
}
