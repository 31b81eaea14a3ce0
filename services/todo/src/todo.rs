//! What a todo is and what may happen to it. Pure: the time and new ids are arguments.

use chrono::{DateTime, Utc};
use contracts::text::{is_misleading, is_misleading_name};
use contracts::{SeriesId, TodoId, UserId};

use crate::recurrence::{Occurrence, Pattern, Recurrence, RecurrenceError};
use crate::texts::{Label, Labels, Notes, Title};

/// Where a todo is in its life cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Still to be done.
    Open,
    /// Done.
    Completed {
        /// Since when.
        at: DateTime<Utc>,
    },
}

/// One thing to do. It does not hold its tenant (the transaction knows it), nor whether it is deleted (then there is no todo).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Todo {
    /// Its id.
    pub id: TodoId,
    /// What is to be done.
    pub title: Title,
    /// More about it.
    pub notes: Notes,
    /// Where it is in its life cycle.
    pub state: State,
    /// When it should be done.
    pub due_time: Option<DateTime<Utc>>,
    /// Its labels.
    pub labels: Labels,
    /// Who should do it.
    pub assignee: Option<UserId>,
    /// How it recurs.
    pub recurrence: Option<Recurrence>,
    /// Which todo of a series it is, since it first had a recurrence.
    pub occurrence: Option<Occurrence>,
    /// When it was created.
    pub create_time: DateTime<Utc>,
    /// When it was last changed.
    pub update_time: DateTime<Utc>,
    /// Who created it.
    pub created_by: UserId,
    /// Counts the changes, from 1.
    pub version: i32,
}

/// What those who watch hear of a todo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was created or changed, and is this now.
    Todo(Box<Todo>),
    /// It was deleted, at this version.
    Deleted(TodoId, i32),
}

/// The input for a new todo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What is to be done.
    pub title: Title,
    /// More about it.
    pub notes: Notes,
    /// When it should be done.
    pub due_time: Option<DateTime<Utc>>,
    /// Its labels.
    pub labels: Labels,
    /// Who should do it.
    pub assignee: Option<UserId>,
    /// How it recurs; it then has a due time.
    pub recurrence: Option<Recurrence>,
    /// For a later todo of a series: what it follows.
    pub follows: Option<Follows>,
}

/// What the next todo of a series follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follows {
    /// The todo before.
    pub predecessor: TodoId,
    /// Which todo of the series it is.
    pub occurrence: Occurrence,
    /// Who began the series.
    pub begun_by: UserId,
}

/// The people whom a todo names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct People {
    /// Who created it.
    pub created_by: UserId,
    /// Who should do it.
    pub assignee: Option<UserId>,
}

impl Draft {
    /// Removes every person whom the todo before no longer names.
    pub fn forget_like(&mut self, before: &People) {
        if before.assignee.is_none() {
            self.assignee = None;
        }
        if let Some(follows) = self.follows.as_mut().filter(|_| before.created_by == UserId::erased()) {
            follows.begun_by = UserId::erased();
        }
    }
}

/// A change; a `None` field stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Patch {
    /// A new title.
    pub title: Option<Title>,
    /// New notes.
    pub notes: Option<Notes>,
    /// A new due time, or none any more.
    pub due_time: Option<Option<DateTime<Utc>>>,
    /// New labels, all of them.
    pub labels: Option<Labels>,
    /// A new assignee, or nobody any more.
    pub assignee: Option<Option<UserId>>,
    /// How it is to recur, or not any more.
    pub recurrence: Option<Option<Pattern>>,
}

/// A change that the state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransitionError {
    /// Only an open todo can be completed.
    #[error("the todo is completed already")]
    AlreadyCompleted,
    /// Only a completed todo can be opened again.
    #[error("the todo is open already")]
    AlreadyOpen,
}

impl Todo {
    /// A new, open todo. The next todo of a series belongs to the creator of the series.
    #[must_use]
    pub fn create(id: TodoId, draft: Draft, by: UserId, now: DateTime<Utc>) -> Self {
        let Draft { title, notes, due_time, labels, assignee, recurrence, follows } = draft;
        let (occurrence, created_by) = match follows {
            Some(Follows { predecessor: _, occurrence, begun_by }) => (Some(occurrence), begun_by),
            None => (recurrence.as_ref().map(|_| first_of_series(id)), by),
        };
        Self {
            id,
            title,
            notes,
            state: State::Open,
            due_time,
            labels,
            assignee,
            recurrence,
            occurrence,
            create_time: now,
            update_time: now,
            created_by,
            version: 1,
        }
    }

    /// The todo with the patch applied; `None` when the patch changes nothing. The series continues from a new due time.
    ///
    /// # Errors
    /// It would recur without a due time, or never again.
    pub fn update(&self, patch: Patch, now: DateTime<Utc>) -> Result<Option<Self>, RecurrenceError> {
        let Patch { title, notes, due_time, labels, assignee, recurrence } = patch;
        let due_time = due_time.unwrap_or(self.due_time);
        let pattern = recurrence.unwrap_or_else(|| self.recurrence.as_ref().map(|was| was.pattern.clone()));
        let number = self.occurrence.map_or(1, |occurrence| occurrence.number);
        let recurrence = match (pattern, due_time, &self.recurrence) {
            (None, _, _) => None,
            // Also where a release that does not know recurrence has removed the due time.
            (Some(pattern), _, Some(was)) if due_time == self.due_time && pattern == was.pattern => Some(was.clone()),
            (Some(_), None, _) => return Err(RecurrenceError::NeedsDueTime),
            (Some(pattern), Some(due_time), Some(was)) if pattern == was.pattern => {
                Some(Recurrence::new(pattern, due_time))
            }
            (Some(pattern), Some(due_time), _) => Some(Recurrence::new(pattern, due_time).checked(number)?),
        };
        let new = Self {
            title: title.unwrap_or_else(|| self.title.clone()),
            notes: notes.unwrap_or_else(|| self.notes.clone()),
            due_time,
            labels: labels.unwrap_or_else(|| self.labels.clone()),
            assignee: assignee.unwrap_or_else(|| self.assignee.clone()),
            occurrence: self.occurrence.or_else(|| recurrence.as_ref().map(|_| first_of_series(self.id))),
            recurrence,
            ..self.clone()
        };
        Ok((new != *self).then(|| new.changed(now)))
    }

    /// The todo that follows this completed one in its series. None when it does not recur, or its series ends.
    #[must_use]
    pub fn next_of_series(&self) -> Option<Draft> {
        let State::Completed { at } = self.state else { return None };
        let (recurrence, occurrence, due_time) = (self.recurrence.as_ref()?, self.occurrence?, self.due_time?);
        // A release that does not know recurrence may have moved the due time.
        let moved = (!recurrence.is_due(due_time)).then(|| Recurrence::new(recurrence.pattern.clone(), due_time));
        let (next, due_time) = moved.as_ref().unwrap_or(recurrence).next(occurrence.number, at)?;
        Some(Draft {
            title: self.title.clone(),
            notes: self.notes.clone(),
            due_time: Some(due_time),
            labels: self.labels.clone(),
            assignee: self.assignee.clone(),
            recurrence: Some(next),
            follows: Some(Follows {
                predecessor: self.id,
                occurrence: Occurrence { number: occurrence.number.checked_add(1)?, ..occurrence },
                begun_by: self.created_by.clone(),
            }),
        })
    }

    /// The first single-line field that differs from `before` and resembles another text. A text that was stored before such texts were
    /// refused may stay, and may be sent back.
    #[must_use]
    pub fn misleading(&self, before: Option<&Self>) -> Option<&'static str> {
        let title = before.is_none_or(|before| before.title != self.title) && is_misleading(self.title.as_str());
        let known = |label: &Label| before.is_some_and(|before| before.labels.iter().any(|old| old == label));
        let labels = self.labels.iter().any(|label| !known(label) && is_misleading(label.as_str()));
        let assignee = self.assignee.as_ref().filter(|_| before.is_none_or(|before| before.assignee != self.assignee));
        let assignee = assignee.is_some_and(|assignee| is_misleading_name(assignee.as_str()));
        [(title, "title"), (labels, "labels"), (assignee, "assignee")]
            .into_iter()
            .find_map(|(is, field)| is.then_some(field))
    }

    /// Done.
    ///
    /// # Errors
    /// It is completed already.
    pub fn complete(&self, now: DateTime<Utc>) -> Result<Self, TransitionError> {
        match self.state {
            State::Open => Ok(Self { state: State::Completed { at: now }, ..self.changed(now) }),
            State::Completed { .. } => Err(TransitionError::AlreadyCompleted),
        }
    }

    /// Open again.
    ///
    /// # Errors
    /// It is open already.
    pub fn reopen(&self, now: DateTime<Utc>) -> Result<Self, TransitionError> {
        match self.state {
            State::Completed { .. } => Ok(Self { state: State::Open, ..self.changed(now) }),
            State::Open => Err(TransitionError::AlreadyOpen),
        }
    }

    /// Open, with its due time reached, which counts as a change; `None` when it is not open or has no due time.
    #[must_use]
    pub fn become_due(&self, now: DateTime<Utc>) -> Option<Self> {
        (self.state == State::Open && self.due_time.is_some()).then(|| self.changed(now))
    }

    /// Its last version: a reader that holds this version knows of the deletion.
    #[must_use]
    pub fn delete(&self, now: DateTime<Utc>) -> Self {
        self.changed(now)
    }

    /// Its last version, without what it held.
    #[must_use]
    pub fn erase(&self, now: DateTime<Utc>) -> Self {
        Self {
            title: Title::erased(),
            notes: Notes::default(),
            due_time: None,
            labels: Labels::default(),
            assignee: None,
            recurrence: None,
            created_by: UserId::erased(),
            ..self.changed(now)
        }
    }

    /// Without this person; `None` when the todo does not name that person.
    #[must_use]
    pub fn forget(&self, person: &UserId, now: DateTime<Utc>) -> Option<Self> {
        let created_by = if self.created_by == *person { UserId::erased() } else { self.created_by.clone() };
        let assignee = self.assignee.clone().filter(|assignee| assignee != person);
        let new = Self { created_by, assignee, ..self.clone() };
        (new != *self).then(|| new.changed(now))
    }

    /// Changes with every version.
    #[must_use]
    pub fn etag(&self) -> String {
        format!("v{}", self.version)
    }

    fn changed(&self, now: DateTime<Utc>) -> Self {
        // Time never runs backwards within a todo, whatever the clock does.
        Self { version: self.version + 1, update_time: now.max(self.update_time), ..self.clone() }
    }
}

fn first_of_series(id: TodoId) -> Occurrence {
    Occurrence { series: SeriesId::new(id.uuid()), number: 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn todo() -> Todo {
        let draft = Draft {
            title: Title::parse("Splice the line").unwrap(),
            notes: Notes::default(),
            due_time: None,
            labels: Labels::default(),
            assignee: None,
            recurrence: None,
            follows: None,
        };
        let id = "0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e4f".parse().unwrap();
        Todo::create(id, draft, "ann".parse().unwrap(), at(1))
    }

    #[test]
    fn an_update_that_changes_nothing_is_none() {
        let same = Patch { title: Some(Title::parse("Splice the line").unwrap()), ..Patch::default() };
        assert_eq!(todo().update(same, at(2)), Ok(None));
    }

    fn recurring(rule: &str) -> Patch {
        let pattern = Pattern {
            rule: crate::recurrence::Rule::parse(rule).unwrap(),
            time_zone: chrono_tz::Europe::Berlin,
            basis: crate::recurrence::Basis::DueTime,
        };
        Patch { recurrence: Some(Some(pattern)), ..Patch::default() }
    }

    #[test]
    fn a_number_in_a_series_stays_whatever_becomes_of_the_recurrence() {
        assert_eq!(todo().update(recurring("FREQ=DAILY"), at(2)), Err(RecurrenceError::NeedsDueTime));
        let due = Patch { due_time: Some(Some(at(1_000))), ..recurring("FREQ=DAILY") };
        let first = todo().update(due, at(2)).unwrap().unwrap();
        let next = Todo::create(
            "0193a5b0-7a52-7c3e-9b1e-6a1f0c9d2e50".parse().unwrap(),
            first.complete(at(3)).unwrap().next_of_series().unwrap(),
            "todo".parse().unwrap(),
            at(4),
        );
        assert_eq!((next.due_time, next.created_by.as_str()), (Some(at(87_400)), "ann"));
        let place = Occurrence { series: SeriesId::new(first.id.uuid()), number: 2 };
        let no_more = Patch { recurrence: Some(None), ..Patch::default() };
        let ended = next.update(no_more, at(5)).unwrap().unwrap();
        assert_eq!((next.occurrence, ended.occurrence, &ended.recurrence), (Some(place), Some(place), &None));
        assert_eq!(ended.complete(at(6)).unwrap().next_of_series(), None);
        let again = ended.update(recurring("FREQ=WEEKLY"), at(6)).unwrap().unwrap();
        assert_eq!(again.occurrence, Some(place), "or another could take it");
        let without = Patch { due_time: Some(None), ..Patch::default() };
        assert_eq!(next.update(without, at(5)), Err(RecurrenceError::NeedsDueTime));
    }

    #[test]
    fn a_new_due_time_is_the_series_from_there_on_and_another_change_keeps_its_wall_clock() {
        let (gap, later) = (at(1_774_747_800), at(1_774_911_600));
        // In Berlin, 02:30 does not exist on that day: due at 03:30.
        let wall_time = chrono::NaiveDate::from_ymd_opt(2026, 3, 29).unwrap().and_hms_opt(2, 30, 0).unwrap();
        let pattern = recurring("FREQ=DAILY").recurrence.unwrap().unwrap();
        let recurrence = Some(Recurrence { pattern, wall_time });
        let todo = Todo { due_time: Some(gap), recurrence, occurrence: Some(first_of_series(todo().id)), ..todo() };
        let renamed = Patch { title: Some(Title::parse("x").unwrap()), ..Patch::default() };
        let renamed = todo.update(renamed, at(2)).unwrap().unwrap();
        assert_eq!(renamed.recurrence, todo.recurrence, "not 03:30 from now on");
        let moved = todo.update(Patch { due_time: Some(Some(later)), ..Patch::default() }, at(2)).unwrap().unwrap();
        assert_eq!(moved.recurrence.unwrap().wall_time.to_string(), "2026-03-31 01:00:00");
    }

    #[test]
    fn what_a_release_without_recurrence_has_made_of_it_is_gone_on_with() {
        let due = Patch { due_time: Some(Some(at(1_000))), ..recurring("FREQ=DAILY") };
        let todo = todo().update(due, at(2)).unwrap().unwrap();
        let moved = Todo { due_time: Some(at(1_000 + 3_600)), ..todo.clone() };
        let next = moved.complete(at(3)).unwrap().next_of_series().unwrap();
        assert_eq!(next.due_time, Some(at(1_000 + 3_600 + 86_400)));
        let without = Todo { due_time: None, ..todo };
        let renamed = Patch { title: Some(Title::parse("x").unwrap()), ..Patch::default() };
        assert!(without.update(renamed, at(3)).unwrap().is_some());
        assert_eq!(without.complete(at(3)).unwrap().next_of_series(), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Update(String),
        Complete,
        Reopen,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof!["[a-z]{1,5}".prop_map(Step::Update), Just(Step::Complete), Just(Step::Reopen)];
        prop::collection::vec(step, 0..20)
    }

    proptest! {
        #[test]
        fn each_change_counts_once_and_completion_has_a_time(steps in steps()) {
            let mut todo = todo();
            for (n, step) in steps.into_iter().enumerate() {
                let (before, now) = (todo.clone(), at(n as i64 + 2));
                let after = match step {
                    Step::Update(title) => {
                        before.update(Patch { title: Title::parse(&title).ok(), ..Patch::default() }, now).unwrap()
                    }
                    Step::Complete => before.complete(now).ok(),
                    Step::Reopen => before.reopen(now).ok(),
                };
                if let Some(after) = after {
                    prop_assert_eq!(after.version, before.version + 1);
                    prop_assert!(after.update_time >= before.update_time);
                    prop_assert_eq!(after.create_time, before.create_time);
                    todo = after;
                }
            }
            let completed = matches!(todo.state, State::Completed { .. });
            prop_assert_eq!(completed, todo.complete(at(99)).is_err());
            prop_assert_eq!(completed, todo.reopen(at(99)).is_ok());
        }
    }
}
