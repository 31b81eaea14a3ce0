//! Who the members of the tenant are: a file names an assignee as people do, a todo by the user.

use std::collections::{HashMap, HashSet};

use anyhow::ensure;
use serde_json::Value;

use crate::api::Api;

/// How many members to ask for at once.
const PAGE: u16 = 100;

/// The longest notes of a todo, in characters.
const MAX_NOTES: usize = 10_000;

/// The members of a tenant.
#[derive(Default)]
pub struct Members {
    users: HashSet<String>,
    /// The user, by the e-mail address in small letters.
    by_address: HashMap<String, String>,
}

impl Members {
    /// Those whom the fleet shows.
    pub async fn read(api: &Api) -> Result<Self, anyhow::Error> {
        let (mut members, mut token) = (Self::default(), String::new());
        loop {
            let answer = api.read(&format!("/v1/members?pageSize={PAGE}&pageToken={token}")).await?;
            ensure!(
                answer.status.is_success(),
                "the fleet does not show the tenant's members: {}",
                answer.body["detail"]
            );
            for member in answer.body["members"].as_array().into_iter().flatten() {
                members.add(&text(&member["user"]), &text(&member["email"]));
            }
            token = text(&answer.body["nextPageToken"]);
            if token.is_empty() {
                return Ok(members);
            }
        }
    }

    fn add(&mut self, user: &str, email: &str) {
        self.users.insert(user.to_owned());
        if !email.is_empty() {
            let of_one = self.by_address.entry(email.to_ascii_lowercase()).or_insert_with(|| user.to_owned());
            if of_one != user {
                // Of two, nobody knows which: it is left to the notes.
                of_one.clear();
            }
        }
    }

    /// Makes the assignee of a todo the user of that member. Who is none is written into the notes, if there is room; then it returns what to
    /// say about it.
    pub fn assign(&self, todo: &mut Value) -> Option<String> {
        let named = text(&todo["assignee"]);
        if named.is_empty() || self.users.contains(&named) {
            return None;
        }
        if let Some(user) = self.by_address.get(&named.to_ascii_lowercase()).filter(|user| !user.is_empty()) {
            todo["assignee"] = user.as_str().into();
            return None;
        }
        todo["assignee"] = "".into();
        let notes = text(&todo["notes"]);
        let longer = format!("{notes}{}assignee: {named}", if notes.is_empty() { "" } else { "\n" });
        if longer.chars().count() > MAX_NOTES {
            return Some(format!("{named} is no member, and the notes have no room for the assignee: it is left out"));
        }
        todo["notes"] = longer.into();
        Some(format!("{named} is no member: the assignee stands in the notes"))
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_assignee_is_found_by_user_or_address_and_a_stranger_stands_in_the_notes() {
        let mut members = Members::default();
        members.add("u-1", "Ann@Acme.example");
        members.add("u-2", "");
        members.add("u-3", "crew@acme.example");
        members.add("u-4", "crew@acme.example");
        let assigned = |named: &str, notes: &str| {
            let mut todo = json!({"title": "Tar", "notes": notes, "assignee": named});
            let said = members.assign(&mut todo);
            (text(&todo["assignee"]), text(&todo["notes"]), said.is_some())
        };
        let found = |user: &str| (user.to_owned(), String::new(), false);
        assert_eq!(assigned("u-1", ""), found("u-1"));
        assert_eq!(assigned("ann@acme.EXAMPLE", ""), found("u-1"));
        assert_eq!(assigned("u-2", ""), found("u-2"));
        assert_eq!(assigned("", ""), found(""));
        assert_eq!(assigned("crew@acme.example", "").1, "assignee: crew@acme.example");
        // A user is spelled one way.
        assert_eq!(assigned("U-1", "").1, "assignee: U-1");
        let long = "n".repeat(MAX_NOTES - 5);
        assert_eq!(assigned("Piet", &long), (String::new(), long.clone(), true));
        assert_eq!(assigned("Piet", "n"), (String::new(), "n\nassignee: Piet".to_owned(), true));
        assert_eq!(assigned("Piet", ""), (String::new(), "assignee: Piet".to_owned(), true));
    }
}
