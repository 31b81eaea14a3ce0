//! The relay's algorithm, checked in every interleaving: two writers, two aggregates, three events, a window of two, two
//! relays whose lease may pass at any moment, a rollback, a crash or lost answer at every step, messages that arrive after
//! their session has ended, and a broker that comes back without its newest messages. The steps are those of
//! `src/reader.rs` (settle), `src/chain.rs` (window and verdicts), `src/resume.rs` (the tail) and `src/relay.rs` (lease).
//!
//! The same model, broken on purpose in one place, must be caught: a check that cannot fail says nothing.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use stateright::{Checker as _, Model, Property};

const WINDOW: usize = 2;
const WRITERS: usize = 2;
const RELAYS: usize = 2;
const EVENTS: u8 = 3;

/// What is left out of the algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// Gaps are passed without a check of who is writing.
    NoSettle,
    /// The mark is read after the writers, not before.
    MarkAfterWriters,
    /// Messages expect nothing of the stream.
    NoExpectedSequence,
    /// The position is that of the last acknowledgement, not of the stream's tail.
    CursorInsteadOfTail,
    /// A `seq` is taken before the aggregate's row is locked.
    SeqBeforeLock,
    /// Rows that were handed over are passed, gap or not.
    HandedOverGaps,
    /// The newest message is read, not the one at the last sequence that was read before.
    TailApart,
}

/// A committed row: its number, its aggregate, and the version in the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Row {
    seq: u8,
    aggregate: u8,
    version: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Writer {
    Idle,
    /// Has the aggregate's row lock, the table's, and a number; with [`Broken::SeqBeforeLock`] perhaps no lock yet.
    Numbered {
        aggregate: u8,
        seq: u8,
        locked: bool,
    },
}

/// Statements of the reader, each with its own snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Reading {
    Start,
    Marked(u8),
    /// Waits for these transactions (writer, number of its transaction).
    Waiting(u8, Vec<(usize, u8)>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Session {
    /// Has read the stream's last sequence.
    Opening { epoch: u8, base: u8 },
    Open {
        epoch: u8,
        base: u8,
        place: u8,
        settled: u8,
        reading: Reading,
        in_flight: u8,
        /// So many of the oldest in flight have arrived without asking for an answer.
        unheard: u8,
    },
}

/// A message on its way: what it expects, and its row.
type Message = (u8, Row);

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct Relay {
    session: Option<Session>,
    /// On the way from this session.
    net: Vec<Message>,
    /// Still on the way from earlier sessions; nobody hears their answers.
    old: Vec<Message>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    begun: u8,
    rollbacks: u8,
    next_seq: u8,
    writers: Vec<Writer>,
    transactions: Vec<u8>,
    rows: Vec<Row>,
    stream: Vec<Row>,
    relays: Vec<Relay>,
    holder: Option<usize>,
    epoch: u8,
    /// What was acknowledged last, for the variant that trusts it.
    cursor: u8,
    crashes: u8,
    losses: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Begin(usize, u8),
    TakeLock(usize),
    Commit(usize),
    Rollback(usize),
    TakeLease(usize),
    NoticeLostLease(usize),
    ReadLastSequence(usize),
    ReadTail(usize),
    /// So many of the rows that follow without a gap: all, as a query finds them, or as many as were handed over so far.
    ReadGapless(usize, usize),
    ReadMark(usize),
    ReadWriters(usize),
    ReadSettled(usize),
    /// The broker stores or refuses a message, and the relay hears of it. That it does not hear is a crash before.
    Arrive(usize),
    /// The same of a message behind which another one is on the way: it asked for no answer, and what became of it is not
    /// heard.
    ArriveUnheard(usize),
    ArriveOld(usize),
    /// No answer will come: the oldest message has been silent for too long.
    Silent(usize),
    /// Nothing is in flight, and the stream does not stand where it was left.
    Look(usize),
    /// Or an answer that was lost. So many messages were sent by then.
    Crash(usize, usize),
    LoseTail(u8),
}

struct Outbox {
    broken: Broken,
    crashes: u8,
    losses: u8,
    rollbacks: u8,
    leases: u8,
}

impl Outbox {
    fn is_locked(state: &State, aggregate: u8) -> bool {
        state.writers.iter().any(|writer| match writer {
            Writer::Idle => false,
            Writer::Numbered { aggregate: held, locked, .. } => *locked && *held == aggregate,
        })
    }

    /// The transactions that hold a writer's lock on the table.
    fn writers(state: &State) -> Vec<(usize, u8)> {
        let open = state.writers.iter().enumerate().filter(|(_, writer)| **writer != Writer::Idle);
        open.map(|(index, _)| (index, state.transactions[index])).collect()
    }

    fn end_session(state: &mut State, relay: usize) {
        let relay = &mut state.relays[relay];
        relay.session = None;
        let late = std::mem::take(&mut relay.net);
        relay.old.extend(late);
    }

    fn store(&self, state: &mut State, (expected, row): Message) -> bool {
        let fits = self.broken == Broken::NoExpectedSequence || usize::from(expected) == state.stream.len();
        if fits {
            state.stream.push(row);
        }
        fits
    }

    /// Everything that was committed is stored.
    fn is_complete(state: &State) -> bool {
        state.rows.iter().all(|row| state.stream.contains(row))
    }
}

/// How many of the rows follow `after` without a gap.
fn gapless(after: u8, rows: &[Row]) -> usize {
    rows.iter().zip(after + 1..).take_while(|(row, wanted)| row.seq == *wanted).count()
}

fn behind(rows: &[Row], place: u8, up_to: u8, most: usize) -> Vec<Row> {
    rows.iter().copied().filter(|row| row.seq > place && row.seq <= up_to).take(most).collect()
}

impl Model for Outbox {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            begun: 0,
            rollbacks: 0,
            next_seq: 1,
            writers: vec![Writer::Idle; WRITERS],
            transactions: vec![0; WRITERS],
            rows: Vec::new(),
            stream: Vec::new(),
            relays: vec![Relay::default(); RELAYS],
            holder: None,
            epoch: 0,
            cursor: 0,
            crashes: 0,
            losses: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, writer) in state.writers.iter().enumerate() {
            match writer {
                Writer::Idle if state.begun < EVENTS => {
                    // The first of two like writers goes first: the other way round shows nothing new.
                    if index == 0 || state.transactions[0] > 0 {
                        for aggregate in 0..2 {
                            if self.broken == Broken::SeqBeforeLock || !Self::is_locked(state, aggregate) {
                                actions.push(Action::Begin(index, aggregate));
                            }
                        }
                    }
                }
                Writer::Idle => {}
                Writer::Numbered { locked: true, .. } => {
                    actions.push(Action::Commit(index));
                    if state.rollbacks < self.rollbacks {
                        actions.push(Action::Rollback(index));
                    }
                }
                Writer::Numbered { aggregate, locked: false, .. } => {
                    if !Self::is_locked(state, *aggregate) {
                        actions.push(Action::TakeLock(index));
                    }
                }
            }
        }
        for (index, relay) in state.relays.iter().enumerate() {
            if !relay.net.is_empty() {
                actions.push(Action::Arrive(index));
            }
            if relay.net.len() > 1 {
                actions.push(Action::ArriveUnheard(index));
            }
            if !relay.old.is_empty() {
                actions.push(Action::ArriveOld(index));
            }
            let Some(session) = &relay.session else {
                match state.holder {
                    Some(holder) if holder == index => actions.push(Action::ReadLastSequence(index)),
                    // The first of two like relays leads first.
                    None if index == 0 => actions.push(Action::TakeLease(index)),
                    Some(_) if state.epoch < self.leases => actions.push(Action::TakeLease(index)),
                    _ => {}
                }
                continue;
            };
            if state.crashes < self.crashes {
                actions.extend((0..=relay.net.len()).map(|sent| Action::Crash(index, sent)));
            }
            let epoch = match session {
                Session::Opening { epoch, .. } => {
                    actions.push(Action::ReadTail(index));
                    epoch
                }
                Session::Open { epoch, base, place, settled, reading, in_flight, .. } => {
                    let room = WINDOW - usize::from(*in_flight);
                    if room > 0 {
                        let follow = behind(&state.rows, *place, u8::MAX, room);
                        let gapless = gapless(*place, &follow);
                        let most = if self.broken == Broken::HandedOverGaps { follow.len() } else { gapless };
                        actions.extend((1..=most).map(|rows| Action::ReadGapless(index, rows)));
                        match reading {
                            Reading::Start => {
                                if gapless == 0 && state.next_seq - 1 > *place && state.next_seq - 1 != *settled {
                                    let first = if self.broken == Broken::MarkAfterWriters {
                                        Action::ReadWriters(index)
                                    } else {
                                        Action::ReadMark(index)
                                    };
                                    actions.push(first);
                                }
                            }
                            Reading::Marked(_) => actions.push(Action::ReadWriters(index)),
                            Reading::Waiting(mark, open) => {
                                let now = Self::writers(state);
                                if *mark == 0 {
                                    actions.push(Action::ReadMark(index));
                                } else if self.broken == Broken::NoSettle
                                    || !open.iter().any(|writer| now.contains(writer))
                                {
                                    actions.push(Action::ReadSettled(index));
                                }
                            }
                        }
                    }
                    if *in_flight > 0 && relay.net.is_empty() {
                        actions.push(Action::Silent(index));
                    }
                    if *in_flight == 0 && usize::from(*base) != state.stream.len() {
                        actions.push(Action::Look(index));
                    }
                    epoch
                }
            };
            if *epoch != state.epoch {
                actions.push(Action::NoticeLostLease(index));
            }
        }
        if state.losses < self.losses {
            let stored = u8::try_from(state.stream.len()).unwrap();
            actions.extend((0..stored).map(Action::LoseTail));
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Begin(writer, aggregate) => {
                state.begun += 1;
                state.transactions[writer] += 1;
                let locked = self.broken != Broken::SeqBeforeLock;
                state.writers[writer] = Writer::Numbered { aggregate, seq: state.next_seq, locked };
                state.next_seq += 1;
            }
            Action::TakeLock(writer) => {
                if let Writer::Numbered { locked, .. } = &mut state.writers[writer] {
                    *locked = true;
                }
            }
            Action::Commit(writer) => {
                let Writer::Numbered { aggregate, seq, .. } = state.writers[writer] else { return None };
                let version = state.rows.iter().filter(|row| row.aggregate == aggregate).count() + 1;
                state.rows.push(Row { seq, aggregate, version: u8::try_from(version).unwrap() });
                state.rows.sort_unstable();
                state.writers[writer] = Writer::Idle;
            }
            Action::Rollback(writer) => {
                state.rollbacks += 1;
                state.writers[writer] = Writer::Idle;
            }
            Action::TakeLease(relay) => {
                state.holder = Some(relay);
                state.epoch += 1;
            }
            Action::NoticeLostLease(relay) | Action::Silent(relay) | Action::Look(relay) => {
                Self::end_session(&mut state, relay);
            }
            Action::Crash(relay, sent) => {
                state.crashes += 1;
                state.relays[relay].net.truncate(sent);
                Self::end_session(&mut state, relay);
            }
            Action::ReadLastSequence(relay) => {
                let base = u8::try_from(state.stream.len()).unwrap();
                state.relays[relay].session = Some(Session::Opening { epoch: state.epoch, base });
            }
            Action::ReadTail(relay) => {
                let Some(Session::Opening { epoch, base }) = state.relays[relay].session else { return None };
                let tail = match self.broken {
                    Broken::CursorInsteadOfTail => Some(state.cursor),
                    Broken::TailApart => Some(state.stream.last().map_or(0, |row| row.seq)),
                    _ if base == 0 => Some(0),
                    // Gone again: the broker has lost it in between.
                    _ => state.stream.get(usize::from(base) - 1).map(|row| row.seq),
                };
                let Some(place) = tail else {
                    Self::end_session(&mut state, relay);
                    return Some(state);
                };
                let (settled, in_flight, unheard) = (0, 0, 0);
                let reading = Reading::Start;
                state.relays[relay].session =
                    Some(Session::Open { epoch, base, place, settled, reading, in_flight, unheard });
            }
            Action::ReadGapless(relay, _)
            | Action::ReadMark(relay)
            | Action::ReadWriters(relay)
            | Action::ReadSettled(relay) => {
                let now = Self::writers(&state);
                let relay = &mut state.relays[relay];
                let Some(Session::Open { base, place, settled, reading, in_flight, .. }) = &mut relay.session else {
                    return None;
                };
                let room = WINDOW - usize::from(*in_flight);
                let mark = before.next_seq - 1;
                let mut rows = Vec::new();
                match (&action, reading.clone()) {
                    (Action::ReadGapless(_, count), _) => {
                        rows = behind(&before.rows, *place, u8::MAX, room);
                        rows.truncate(*count);
                        *reading = Reading::Start;
                    }
                    (Action::ReadMark(_), Reading::Waiting(_, open)) => *reading = Reading::Waiting(mark, open),
                    (Action::ReadMark(_), _) => *reading = Reading::Marked(mark),
                    (Action::ReadWriters(_), Reading::Marked(mark)) => *reading = Reading::Waiting(mark, now),
                    (Action::ReadWriters(_), _) => *reading = Reading::Waiting(0, now),
                    (_, Reading::Waiting(mark, _)) => {
                        rows = behind(&before.rows, *place, mark, room);
                        if rows.len() < room {
                            *settled = mark;
                        }
                        *reading = Reading::Start;
                    }
                    _ => return None,
                }
                // They are sent at once; a crash may find only some of them sent.
                for row in rows {
                    relay.net.push((*base + *in_flight, row));
                    *in_flight += 1;
                    *place = row.seq;
                }
            }
            Action::Arrive(relay) => {
                let message = state.relays[relay].net.remove(0);
                if self.store(&mut state, message) {
                    let Some(Session::Open { base, in_flight, unheard, .. }) = &mut state.relays[relay].session else {
                        return None;
                    };
                    // It expected those before it to be stored.
                    *in_flight -= 1 + *unheard;
                    *base += 1 + *unheard;
                    *unheard = 0;
                    state.cursor = message.1.seq;
                } else {
                    Self::end_session(&mut state, relay);
                }
            }
            Action::ArriveUnheard(relay) => {
                let message = state.relays[relay].net.remove(0);
                self.store(&mut state, message);
                let Some(Session::Open { unheard, .. }) = &mut state.relays[relay].session else { return None };
                *unheard += 1;
            }
            Action::ArriveOld(relay) => {
                let message = state.relays[relay].old.remove(0);
                self.store(&mut state, message);
            }
            Action::LoseTail(left) => {
                state.losses += 1;
                state.stream.truncate(usize::from(left));
                // It was restarted: nothing survives on a connection to it.
                for relay in &mut state.relays {
                    relay.net.clear();
                    relay.old.clear();
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("once, in the order of seq", |_, state: &State| {
                state.stream.windows(2).all(|pair| pair[0].seq < pair[1].seq)
            }),
            Property::always("in version order, none left out, for each aggregate", |_, state: &State| {
                (0..2).all(|aggregate| {
                    let versions = state.stream.iter().filter(|row| row.aggregate == aggregate).map(|row| row.version);
                    versions.zip(1..).all(|(version, wanted)| version == wanted)
                })
            }),
            Property::always("nothing committed lies behind the stream's tail unpublished", |_, state: &State| {
                let tail = state.stream.last().map_or(0, |row| row.seq);
                state.rows.iter().all(|row| row.seq > tail || state.stream.contains(row))
            }),
            Property::always("when nothing can happen any more, all that was committed is stored", |model, state| {
                let mut actions = Vec::new();
                model.actions(state, &mut actions);
                // A loss is something that may happen, not something that anyone waits for.
                actions
                    .retain(|action| !matches!(action, Action::LoseTail(_) | Action::Crash(..) | Action::TakeLease(_)));
                !actions.is_empty() || state.holder.is_none() || Outbox::is_complete(state)
            }),
            Property::sometimes("a gap is passed", |_, state: &State| {
                state.stream.windows(2).any(|pair| pair[0].seq + 1 < pair[1].seq)
            }),
            Property::sometimes("a loss is refilled", |_, state: &State| {
                state.losses > 0 && state.rows.len() == usize::from(EVENTS) && Outbox::is_complete(state)
            }),
        ]
    }
}

fn whole(broken: Broken) -> Outbox {
    Outbox { broken, crashes: 1, losses: 1, rollbacks: 1, leases: 2 }
}

#[test]
fn the_algorithm_holds_in_every_interleaving() {
    let checker = whole(Broken::Nothing).checker().threads(2).spawn_bfs().join();
    println!("{} states, {} of them unique", checker.state_count(), checker.unique_state_count());
    checker.assert_properties();
    assert!(checker.unique_state_count() > 100_000, "the model has shrunk to {}", checker.unique_state_count());
}

#[test]
fn each_broken_variant_is_caught() {
    for (broken, property) in [
        (Broken::HandedOverGaps, "nothing committed lies behind the stream's tail unpublished"),
        (Broken::NoSettle, "nothing committed lies behind the stream's tail unpublished"),
        (Broken::MarkAfterWriters, "nothing committed lies behind the stream's tail unpublished"),
        (Broken::NoExpectedSequence, "once, in the order of seq"),
        (Broken::CursorInsteadOfTail, "nothing committed lies behind the stream's tail unpublished"),
        (Broken::TailApart, "once, in the order of seq"),
        (Broken::SeqBeforeLock, "in version order, none left out, for each aggregate"),
    ] {
        let checker =
            whole(broken).checker().threads(2).finish_when(stateright::HasDiscoveries::AnyOf([property].into()));
        let checker = checker.spawn_bfs().join();
        let path = checker.discovery(property).unwrap_or_else(|| panic!("{broken:?} was not caught"));
        println!("{broken:?}: {} steps to break \"{property}\"", path.into_actions().len());
    }
}
