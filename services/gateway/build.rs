//! Puts the errors of all services behind those that every service has, as one page with an anchor for each; and makes a page of what clients
//! may rely on.

use std::fs;
use std::path::PathBuf;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd, html};

fn main() -> Result<(), std::io::Error> {
    // Asked at run time, as in the proto package.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let root = package.join("../..");
    let mut pages: Vec<PathBuf> = fs::read_dir(root.join("services"))?
        .filter_map(|service| Some(service.ok()?.path().join("errors.md")))
        .filter(|page| page.exists())
        .collect();
    pages.sort();
    pages.insert(0, root.join("docs/errors.md"));
    // A new service has its row there.
    println!("cargo:rerun-if-changed={}", root.join("crates/fleet/src/services.rs").display());
    let mut all = String::new();
    for page in pages {
        println!("cargo:rerun-if-changed={}", page.display());
        all.push_str(&fs::read_to_string(page)?);
        all.push('\n');
    }
    // A sample of each event, as it was released: also of those that were superseded.
    let samples = root.join("schemas/samples");
    println!("cargo:rerun-if-changed={}", samples.display());
    let mut cases = String::new();
    let mut files: Vec<PathBuf> = fs::read_dir(samples)?.filter_map(|file| Some(file.ok()?.path())).collect();
    files.sort();
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        cases.push_str(&format!("{name:?} => include_str!({:?}),\n", fs::canonicalize(&file)?));
    }
    let out = std::env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    fs::write(out.join("samples.rs"), format!("match event_type {{\n{cases}_ => \"\",\n}}"))?;
    let promises = root.join("docs/clients/promises.md");
    println!("cargo:rerun-if-changed={}", promises.display());
    fs::write(out.join("promises.html"), page(&fs::read_to_string(promises)?))?;
    fs::write(out.join("problems.html"), page(&all))
}

/// This text as HTML. A heading's anchor is what it says, in small letters. Links between the pages of the repository lead nowhere here.
fn page(markdown: &str) -> String {
    let mut events: Vec<Event> = Parser::new_ext(markdown, Options::ENABLE_TABLES)
        .filter(|event| !matches!(event, Event::Start(Tag::Link { .. }) | Event::End(TagEnd::Link)))
        .collect();
    for at in 1..events.len() {
        if let [Event::Start(Tag::Heading { id, .. }), Event::Text(text)] = &mut events[at - 1..=at] {
            *id = Some(text.to_lowercase().into());
        }
    }
    let mut page = String::new();
    html::push_html(&mut page, events.into_iter());
    page
}
