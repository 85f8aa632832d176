//! Random requests, failures and restarts against [`super::accept`]: in any order, the session is
//! in a valid state, and every client gets one answer.

use proptest::prelude::*;

use super::*;

/// Events of a session.
#[derive(Clone, Copy, Debug)]
enum Op {
    Ask(Verb),
    /// The running start succeeded, or failed.
    Started(bool),
    TurnEnds,
    /// claude or its sandbox is gone.
    Dies,
    /// Idle for too long, or evicted.
    Parks,
    /// ashd was killed; the sandbox still exists, or not.
    Restarts(bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => prop::sample::select(Verb::ALL.to_vec()).prop_map(Op::Ask),
        3 => any::<bool>().prop_map(Op::Started),
        2 => Just(Op::TurnEnds),
        1 => Just(Op::Dies),
        1 => Just(Op::Parks),
        1 => any::<bool>().prop_map(Op::Restarts),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Start {
    Create,
    Resume,
    /// A new process for the options of the running turn.
    Turn,
}

/// A session as its task sees it, without processes.
#[derive(Debug)]
struct Session {
    status: SessionStatus,
    live: bool,
    start: Option<Start>,
    turn: bool,
    waiting: Vec<Verb>,
    /// Requests made, and answers given.
    asked: usize,
    answered: usize,
}

impl Session {
    fn new() -> Self {
        // The create's client is the first who waits.
        let status = SessionStatus::Starting;
        Self {
            status,
            live: false,
            start: Some(Start::Create),
            turn: false,
            waiting: Vec::new(),
            asked: 1,
            answered: 0,
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Ask(verb) => {
                self.asked += 1;
                self.ask(verb);
            }
            Op::Started(well) => self.started(well),
            Op::TurnEnds => self.turn = false,
            Op::Dies if self.live => {
                (self.live, self.turn) = (false, false);
                if self.status == SessionStatus::Active {
                    self.enter(SessionStatus::Error);
                }
            }
            Op::Parks if self.live && !self.turn && self.start.is_none() => {
                self.live = false;
                if self.status == SessionStatus::Active {
                    self.enter(SessionStatus::Paused);
                }
            }
            Op::Dies | Op::Parks => {}
            Op::Restarts(alive) => self.restarts(alive),
        }
    }

    fn ask(&mut self, verb: Verb) {
        let standing = Standing {
            status: self.status,
            starting: self.start.is_some(),
            turn: self.turn,
            waiting: self.waiting.len(),
        };
        match accept(&standing, verb) {
            Accept::Wait => return self.waiting.push(verb),
            Accept::Refuse(_) => return self.answered += 1,
            Accept::Overtake => {
                // Waiting clients get an error; a turn's client gets it on its stream.
                self.answered += usize::from(self.start != Some(Start::Turn));
                (self.start, self.live) = (None, false);
            }
            Accept::Now => {}
        }
        self.act(verb);
        self.after();
    }

    fn act(&mut self, verb: Verb) {
        match transitions::next(self.status, verb).expect("accepted") {
            transitions::Next::Same => {}
            transitions::Next::Stay => match verb {
                Verb::Send => {
                    assert!(self.live && !self.turn, "a message without a process, or a second turn: {self:?}");
                    self.turn = true;
                    // Every third message needs a new process for its options.
                    if self.asked.is_multiple_of(3) {
                        (self.start, self.live) = (Some(Start::Turn), false);
                    }
                }
                Verb::Interrupt => self.turn = false,
                _ => {}
            },
            transitions::Next::To(SessionStatus::Active) if !self.live => {
                self.start = Some(Start::Resume);
                return;
            }
            transitions::Next::To(to) => {
                self.enter(to);
                if matches!(to, SessionStatus::Stopped | SessionStatus::Ended) {
                    (self.live, self.turn) = (false, false);
                }
            }
        }
        self.answered += 1;
    }

    fn started(&mut self, well: bool) {
        let Some(start) = self.start.take() else { return };
        self.live = well;
        match (start, well) {
            (Start::Create | Start::Resume, true) => self.enter(SessionStatus::Active),
            (Start::Create, false) => self.enter(SessionStatus::Error),
            (Start::Turn, false) => {
                self.turn = false;
                self.enter(SessionStatus::Error);
            }
            (Start::Resume, false) | (Start::Turn, true) => {}
        }
        self.answered += usize::from(start != Start::Turn);
        self.after();
    }

    /// The start is over or abandoned: decides again on waiting requests.
    fn after(&mut self) {
        if self.start.is_none() {
            for verb in std::mem::take(&mut self.waiting) {
                self.ask(verb);
            }
        }
    }

    fn restarts(&mut self, alive: bool) {
        // A lost connection counts as an answer.
        self.answered = self.asked;
        self.waiting.clear();
        let starting = self.start.take().is_some();
        self.live = self.live && alive && !starting;
        if !self.live {
            self.turn = false;
            if matches!(self.status, SessionStatus::Active | SessionStatus::Starting) {
                self.enter(SessionStatus::Paused);
            }
        }
    }

    /// Only permitted transitions, and that of a restart during the create.
    fn enter(&mut self, to: SessionStatus) {
        use SessionStatus::{Active, Ended, Error, Paused, Starting, Stopped};
        let allowed = match (self.status, to) {
            (from, Ended) => from != Ended,
            (Starting, Active | Error | Stopped | Paused) | (Active, Paused | Stopped | Error) => true,
            (Paused | Stopped | Error, Active) => true,
            // The new process for a paused session's turn does not start.
            (Paused, Error) => true,
            _ => false,
        };
        assert!(allowed, "{} -> {to}", self.status);
        self.status = to;
    }

    fn check(&self) {
        use SessionStatus::{Active, Ended, Error, Paused, Stopped};
        let starting = self.start.is_some();
        let held = usize::from(matches!(self.start, Some(Start::Create | Start::Resume)));
        assert_eq!(
            self.asked,
            self.answered + self.waiting.len() + held,
            "an answer is missing or duplicate: {self:?}"
        );
        assert!(self.waiting.is_empty() || starting, "they wait without a start: {self:?}");
        assert!(self.waiting.len() <= MAX_WAITING);
        match self.status {
            Active => assert!(self.live || starting, "active without a process: {self:?}"),
            Ended => assert!(!self.live && !self.turn && !starting, "ended and alive: {self:?}"),
            Stopped | Error => assert!(!self.live && !self.turn, "alive: {self:?}"),
            _ => {}
        }
        assert!(!self.turn || matches!(self.status, Active | Paused), "a turn when {}", self.status);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn whatever_comes_the_state_is_one_of_the_contract_and_everybody_is_answered_once(
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut session = Session::new();
        let mut ended = false;
        for op in ops {
            session.apply(op);
            session.check();
            prop_assert!(!ended || session.status == SessionStatus::Ended, "an ended session came back");
            ended = session.status == SessionStatus::Ended;
        }
        // End is always accepted.
        session.apply(Op::Ask(Verb::End));
        session.check();
        prop_assert_eq!(session.status, SessionStatus::Ended);
    }
}
