//! What a search finds, and what it never does.

use std::time::Duration;

use proto::search::{SearchTodosRequest, TodoStatus};
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proto::search::search_service_client::SearchServiceClient;

use crate::harness::{Front, Harness, todo};

fn with(query: &str, change: impl FnOnce(&mut SearchTodosRequest)) -> SearchTodosRequest {
    let mut request = SearchTodosRequest { query: query.to_owned(), ..SearchTodosRequest::default() };
    change(&mut request);
    request
}

#[tokio::test]
async fn words_are_found_in_title_notes_and_labels_with_highlights() {
    let harness = Harness::start().await;
    let mut first = todo("Repair the <lighthouse> lamp");
    first.notes = "Ask the harbour master".to_owned();
    first.labels = vec!["urgent work".to_owned()];
    let second = todo("Lamp oil");
    harness.created("acme", &first).await;
    harness.created("acme", &second).await;
    harness.drain().await;
    for query in ["lighthouse", "LAMP repair", "harbour", "urgent", "lamp master urgent"] {
        assert_eq!(harness.find("acme", query).await, [first.title.as_str()], "{query}");
    }
    assert_eq!(harness.find("acme", "lamp").await.len(), 2);
    assert!(harness.find("acme", "lamp whale").await.is_empty(), "all words must occur");
    let hit = harness.ask("acme", with("lighthouse harbour", |_| {})).await.unwrap().hits.remove(0);
    let highlights: Vec<_> = hit.highlights.iter().map(|h| (h.field.as_str(), h.snippets[0].as_str())).collect();
    assert!(highlights.contains(&("title", "Repair the &lt;<em>lighthouse</em>&gt; lamp")), "{highlights:?}");
    assert!(highlights.contains(&("notes", "Ask the <em>harbour</em> master")), "{highlights:?}");
    assert_eq!((hit.version, hit.labels, hit.created_by), (1, first.labels, "ann".to_owned()));
}

#[tokio::test]
async fn every_title_is_found_by_itself() {
    let harness = Harness::start().await;
    let titles = [
        "(A) call +mother @phone due soon",
        "!!! ???",
        "a AND b OR NOT c",
        "日本語のタイトル",
        "\"quoted\" -minus +plus ~tilde* (paren) [x] {y} field:value /slash\\",
        "🚢🚢",
        "e-mail o'brien: 10:30 http://example.org/x?y=z",
    ];
    let long = "word ".repeat(99).trim().to_owned();
    for title in titles.iter().copied().chain([long.as_str()]) {
        harness.created("acme", &todo(title)).await;
    }
    harness.drain().await;
    for title in titles.iter().copied().chain([long.as_str()]) {
        assert!(harness.find("acme", title).await.contains(&title.to_owned()), "{title}");
    }
}

#[tokio::test]
async fn filters_narrow_and_pages_show_each_hit_once() {
    let harness = Harness::start().await;
    for n in 0..5 {
        let mut one = todo(&format!("task {n}"));
        one.labels = vec![if n < 3 { "rope".to_owned() } else { "Rope work".to_owned() }];
        if n == 0 {
            one.status = contracts::events::todo::Status::Completed;
            one.complete_time = Some(one.update_time);
        }
        harness.created("acme", &one).await;
    }
    harness.drain().await;
    let count = async |request| harness.ask("acme", request).await.unwrap().hits.len();
    assert_eq!(count(with("task", |r| r.label = "rope".to_owned())).await, 3, "a label is matched whole");
    assert_eq!(count(with("task", |r| r.set_status(TodoStatus::Completed))).await, 1);
    assert_eq!(count(with("", |r| r.set_status(TodoStatus::Open))).await, 4);
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let request = with("task", |r| {
            r.page_size = 2;
            r.page_token = token;
        });
        let page = harness.ask("acme", request).await.unwrap();
        assert_eq!(page.total_size, 5);
        seen.extend(page.hits.into_iter().map(|hit| hit.title));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    seen.sort();
    assert_eq!(seen, ["task 0", "task 1", "task 2", "task 3", "task 4"]);
}

/// Each page is asked for after somebody has written; they end all the same, and show each hit once.
#[tokio::test]
async fn pages_end_and_show_each_hit_once_while_others_write() {
    let harness = Harness::start().await;
    let mut all = Vec::new();
    for n in 0..30 {
        let one = todo(&format!("kelp {n}"));
        harness.created("acme", &one).await;
        all.push(one.id.to_string());
    }
    harness.drain().await;
    let (mut seen, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = with("kelp", |r| {
            r.page_size = 10;
            r.page_token = token;
        });
        let page = harness.ask("acme", request).await.unwrap();
        seen.extend(page.hits.into_iter().map(|hit| hit.id));
        token = page.next_page_token;
        pages += 1;
        if token.is_empty() {
            break;
        }
        assert!(pages < 5, "it does not end");
        for tenant in ["acme", "globex", "globex"] {
            harness.created(tenant, &todo("kelp kelp")).await;
        }
        // One that comes later in the order than all there were.
        let mut later = todo("something else");
        later.notes = "kelp".to_owned();
        harness.created("acme", &later).await;
        all.push(later.id.to_string());
        harness.drain().await;
    }
    all.sort();
    seen.sort();
    assert_eq!(seen, all);
}

#[tokio::test]
async fn a_score_says_nothing_of_what_others_write() {
    let harness = Harness::start().await;
    harness.created("acme", &todo("notes on zephyrmerger")).await;
    harness.drain().await;
    let ask = async || format!("{:?}", harness.ask("acme", with("zephyrmerger", |_| {})).await.unwrap());
    let before = ask().await;
    for tenant in ["globex", "globex", "initech"] {
        harness.created(tenant, &todo("zephyrmerger zephyrmerger")).await;
    }
    harness.drain().await;
    assert_eq!(ask().await, before);
}

#[tokio::test]
async fn the_best_match_is_first_and_of_equal_ones_the_newest() {
    let harness = Harness::start().await;
    let mut noted = todo("something else");
    noted.notes = "tar the hull".to_owned();
    let mut labelled = todo("hull work");
    labelled.labels = vec!["tar".to_owned(), "the".to_owned()];
    let titles = ["hull: the tar", "the old hull and tar", "Now tar the hull", "tar the hull"];
    for one in [noted, labelled].into_iter().chain(titles.map(todo)) {
        harness.created("acme", &one).await;
    }
    harness.drain().await;
    let wanted =
        ["tar the hull", "Now tar the hull", "the old hull and tar", "hull: the tar", "hull work", "something else"];
    assert_eq!(harness.find("acme", "tar the hull").await, wanted);
}

#[tokio::test]
async fn letters_are_found_without_their_marks() {
    let harness = Harness::start().await;
    harness.created("acme", &todo("Café für Åsa: smørrebrød")).await;
    harness.drain().await;
    for query in ["cafe", "CAFÉ", "asa", "åsa", "fur smorrebrod"] {
        assert_eq!(harness.find("acme", query).await.len(), 1, "{query}");
    }
    let hit = harness.ask("acme", with("asa", |_| {})).await.unwrap().hits.remove(0);
    assert_eq!(hit.highlights[0].snippets, ["Café für <em>Åsa</em>: smørrebrød"]);
}

#[tokio::test]
async fn snippets_are_short_and_pages_fit_into_an_answer_whatever_is_written() {
    let harness = Harness::start().await;
    let texts =
        ["漢".repeat(10_000), "𠮷".repeat(10_000), "a".repeat(10_000), "lamp ".repeat(2_000), "lamp,".repeat(2_000)];
    for (n, notes) in texts.iter().enumerate() {
        let mut one = todo(&format!("find {n}"));
        one.notes.clone_from(notes);
        harness.created("acme", &one).await;
    }
    for n in 0..60 {
        let mut one = todo(&format!("heavy {n}"));
        one.notes = "𠮷".repeat(10_000);
        harness.created("globex", &one).await;
    }
    harness.drain().await;
    let word = "a".repeat(255);
    for query in ["漢", "𠮷", "find", "lamp", "漢 漢漢", &word] {
        assert!(!harness.find("acme", query).await.is_empty(), "{query}");
        for hit in harness.ask("acme", with(query, |_| {})).await.unwrap().hits {
            for snippet in hit.highlights.iter().flat_map(|highlight| &highlight.snippets) {
                let plain = snippet.replace("<em>", "").replace("</em>", "");
                assert!(plain.chars().count() <= 150 + 255, "{query}: {} characters", plain.chars().count());
                assert!(snippet.len() <= 4_096, "{query}: {} bytes", snippet.len());
            }
        }
    }
    let (mut seen, mut token, mut pages) = (0, String::new(), 0);
    while pages == 0 || !token.is_empty() {
        let request = with("𠮷", |r| {
            r.page_size = 100;
            r.page_token = token;
        });
        let page = harness.ask("globex", request).await.unwrap();
        assert!(prost::Message::encoded_len(&page) < 4 << 20);
        seen += page.hits.len();
        token = page.next_page_token;
        pages += 1;
    }
    assert!((seen, pages) == (60, 2), "{seen} hits on {pages} pages");
}

#[tokio::test]
async fn no_query_finds_another_tenant_s_todos() {
    let harness = Harness::start().await;
    let mut secret = todo("acme secret");
    secret.labels = vec!["x".to_owned()];
    harness.created("acme", &secret).await;
    harness.drain().await;
    for query in ["", "secret", "*", "acme secret", "tenant:acme", "\"} OR tenant:acme {\"", "secret OR *:*"] {
        assert!(harness.find("globex", query).await.is_empty(), "{query}");
        let request = with(query, |r| r.label = "x".to_owned());
        assert!(harness.ask("globex", request).await.unwrap().hits.is_empty(), "{query} by label");
    }
    let page = with("", |r| r.page_size = 1);
    assert_eq!(harness.ask("globex", page).await.unwrap().total_size, 0, "not even how many there are");
    assert_eq!(harness.find("acme", "secret").await.len(), 1);
}

#[tokio::test]
async fn a_search_needs_a_token_and_sane_limits() {
    let harness = Harness::start().await;
    let anonymous = harness.send(Request::new(SearchTodosRequest::default())).await;
    assert_eq!(anonymous.unwrap_err().code(), Code::Unauthenticated);
    for request in [
        with("", |r| r.page_size = -1),
        with(&"x".repeat(501), |_| {}),
        with("", |r| r.page_token = "garbage".to_owned()),
        with("", |r| r.status = 99),
    ] {
        let status = harness.ask("acme", request).await.unwrap_err();
        assert_eq!(status.get_details_error_info().unwrap().reason, "INVALID_ARGUMENT");
    }
    // The most words that fit are still a search.
    assert!(harness.find("acme", &"語".repeat(500)).await.is_empty());
    assert!(harness.find("acme", &"a ".repeat(250)).await.is_empty());
}

/// A search that brings this token: what it finds, and whether the index was behind.
async fn brings(harness: &Harness, token: &str) -> Result<(usize, bool), tonic::Status> {
    let mut request = Request::new(SearchTodosRequest::default());
    let metadata = request.metadata_mut();
    metadata.insert("authorization", harness.issuer.bearer("acme", "ann").parse().unwrap());
    metadata.insert("consistency-token", token.parse().unwrap());
    let answer = SearchServiceClient::new(harness.channel.clone()).search_todos(request).await?;
    let pending = answer.metadata().get("consistency-token-pending").is_some_and(|pending| pending == "true");
    Ok((answer.into_inner().hits.len(), pending))
}

#[tokio::test]
async fn a_search_waits_for_the_change_that_it_names_or_says_that_it_is_behind() {
    let harness = Harness::start().await;
    let token = |row: u64| URL_SAFE_NO_PAD.encode(format!("todo:{row}"));
    // Each row is searched for as soon as it is in the stream, long before the index would show it by itself.
    for row in 1..=5 {
        harness.created("acme", &todo(&row.to_string())).await;
        // On a busy machine it may take longer than the search waits; what is not pending is there.
        let mut found = brings(&harness, &token(row)).await.unwrap();
        while found.1 {
            found = brings(&harness, &token(row)).await.unwrap();
        }
        assert_eq!(found.0, usize::try_from(row).unwrap(), "row {row}");
    }
    // One of somebody else's is nothing to wait for; what is none is said so.
    assert_eq!(brings(&harness, &URL_SAFE_NO_PAD.encode("identity:99")).await.unwrap(), (5, false));
    assert_eq!(brings(&harness, "todo:1").await.unwrap_err().code(), Code::InvalidArgument);

    harness.pause("2100-01-01T00:00:00Z").await;
    harness.created("acme", &todo("6")).await;
    assert_eq!(brings(&harness, &token(6)).await.unwrap(), (5, true), "the projector stands still");
    harness.pause("2000-01-01T00:00:00Z").await;
    testkit::until("it goes on", || async { brings(&harness, &token(6)).await.unwrap() == (6, false) }).await;
}

#[tokio::test]
async fn opensearch_works_no_longer_for_a_search_than_its_caller_waits() {
    let front = Front::new(1_000_000).await;
    let harness = Harness::start_behind(&front).await;
    let search = async |within: Duration| {
        let mut request = Request::new(with("lamp", |_| {}));
        request.metadata_mut().insert("authorization", harness.issuer.bearer("acme", "ann").parse().unwrap());
        request.set_timeout(within);
        front.given.lock().unwrap().clear();
        harness.send(request).await.unwrap();
        front.given.lock().unwrap().clone()
    };
    // A little longer, so that whoever waits is answered first.
    let hurried = search(Duration::from_millis(2_500)).await;
    assert!(matches!(hurried[..], [given] if (1..=2_550).contains(&given)), "{hurried:?}");
    assert_eq!(search(Duration::from_secs(9)).await, [5_000], "never longer than this");
}
