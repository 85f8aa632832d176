use super::*;

fn own() -> TenantId {
    TenantId::default_tenant()
}

fn granted(pool: &Pool) -> Slot {
    match pool.admit(&own(), Uuid::new_v4()) {
        Admission::Granted(slot) => slot,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_maximum_is_hard_and_a_drop_gives_the_place_back() {
    let pool = Pool::new(2, None, Duration::MAX);
    let first = granted(&pool);
    let _second = granted(&pool);
    assert!(matches!(pool.admit(&own(), Uuid::new_v4()), Admission::Full(_)));
    drop(first);
    assert_eq!(pool.census().warming, 1);
    let _third = granted(&pool);
}

#[test]
fn a_lower_maximum_kills_nothing_and_admits_nothing() {
    let pool = Pool::new(2, None, Duration::MAX);
    let (first, second) = (granted(&pool), granted(&pool));
    pool.resize(1, None, Duration::MAX);
    assert_eq!((pool.census().warming, pool.census().max), (2, 1));
    drop(first);
    assert!(matches!(pool.admit(&own(), Uuid::new_v4()), Admission::Full(_)));
    drop(second);
    granted(&pool);
}

#[test]
fn a_paused_session_makes_room_once() {
    let pool = Pool::new(1, None, Duration::MAX);
    let slot = granted(&pool);
    slot.set(SandboxState::Running, false);
    assert!(matches!(pool.admit(&own(), Uuid::new_v4()), Admission::Full(_)));
    slot.set(SandboxState::Waiting, true);
    assert!(matches!(pool.admit(&own(), Uuid::new_v4()), Admission::MakeRoom(id) if id == slot.session));
    assert!(matches!(pool.admit(&own(), Uuid::new_v4()), Admission::Full(_)), "it is already leaving");
}

#[test]
fn warm_ones_take_no_room_from_sessions_and_go_first() {
    let pool = Pool::new(2, None, Duration::MAX);
    let paused = granted(&pool);
    paused.set(SandboxState::Waiting, true);
    let warm = pool.admit_spare(&own(), Uuid::new_v4(), Spare::Warm).expect("there is room");
    assert!(pool.admit_spare(&own(), Uuid::new_v4(), Spare::Parked).is_none(), "evicts no other sandbox");
    assert!(
        matches!(pool.admit(&own(), Uuid::new_v4()), Admission::MakeRoom(id) if id == warm.session),
        "while it is made"
    );
    warm.set(SandboxState::Warm, false);
    assert_eq!((pool.census().warm, pool.census().warming), (1, 0));
    assert!(
        matches!(pool.admit(&own(), Uuid::new_v4()), Admission::MakeRoom(id) if id == warm.session),
        "before the paused"
    );
    warm.set(SandboxState::Waiting, false);
    assert!(
        matches!(pool.admit(&own(), Uuid::new_v4()), Admission::MakeRoom(id) if id == paused.session),
        "it is claimed"
    );
}

#[test]
fn a_parked_one_that_was_taken_is_a_sessions_while_it_starts() {
    let pool = Pool::new(1, None, Duration::ZERO);
    let slot = pool.admit_spare(&own(), Uuid::new_v4(), Spare::Parked).expect("there is room");
    slot.set(SandboxState::Warm, false);
    assert_eq!((pool.census().warm, pool.census().warming), (1, 0));
    slot.set(SandboxState::Warming, false);
    assert_eq!((pool.census().warm, pool.census().warming), (0, 1));
    assert!(matches!(pool.admit(&own(), Uuid::new_v4()), Admission::Full(_)));
    pool.created(true);
    assert_eq!((pool.census().created_parked, pool.census().created_cold, pool.census().pre_warmed), (1, 0, 0));
}

#[test]
fn gauges_follow_the_states() {
    let pool = Pool::new(9, None, Duration::MAX);
    let slot = granted(&pool);
    slot.set(SandboxState::Waiting, false);
    slot.set(SandboxState::Running, false);
    let census = pool.census();
    assert_eq!((census.warming, census.waiting, census.running), (0, 0, 1));
    drop(slot);
    assert_eq!(pool.census().running, 0);
}

#[test]
fn adoption_counts_what_lives_even_above_the_maximum() {
    let pool = Pool::new(1, None, Duration::MAX);
    let _slots = [pool.adopt(&own(), Uuid::new_v4()), pool.adopt(&own(), Uuid::new_v4())];
    assert_eq!(pool.census().waiting, 2);
    assert!(matches!(pool.admit(&own(), Uuid::new_v4()), Admission::Full(_)));
}
