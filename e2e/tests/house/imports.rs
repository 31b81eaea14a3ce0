//! Within a crate, no file imports one that imports it: each can be read with those below it alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use e2e::workspace;

use crate::sources;

/// A module's path within its crate: that of its file.
type Module = Vec<String>;

/// The text of a file without comments, texts and tests, as words and signs.
fn tokens(text: &str) -> Vec<String> {
    let mut rest = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let (mut tokens, mut word) = (Vec::new(), String::new());
    while let Some(sign) = rest.chars().next() {
        let mut length = sign.len_utf8();
        let raw = ["r\"", "r#\"", "br\""].iter().find(|quote| word.is_empty() && rest.starts_with(**quote));
        if let Some(quote) = raw {
            let end = if quote.contains('#') { "\"#" } else { "\"" };
            length = quote.len() + rest[quote.len()..].find(end).unwrap() + end.len();
        } else if rest.starts_with("//") {
            length = rest.find('\n').unwrap_or(rest.len());
        } else if sign == '"' {
            length = end_of(rest, '"');
        } else if rest.starts_with("'\\") || (sign == '\'' && rest.chars().nth(2) == Some('\'')) {
            length = end_of(rest, '\'');
        } else if sign.is_alphanumeric() || sign == '_' {
            word.push(sign);
            rest = &rest[length..];
            continue;
        }
        if !word.is_empty() {
            tokens.push(std::mem::take(&mut word));
        }
        if "{}(),;:*".contains(sign) && length == 1 {
            tokens.push(sign.to_string());
        }
        rest = &rest[length..];
    }
    tokens.extend(Some(word).filter(|word| !word.is_empty()));
    tokens
}

/// Where a text or a character ends that begins here, its quotes included.
fn end_of(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    let end = rest.char_indices().skip(1).find(|(_, sign)| {
        let ends = *sign == quote && !escaped;
        escaped = *sign == '\\' && !escaped;
        ends
    });
    end.map_or(rest.len(), |(at, _)| at + 1)
}

/// The paths of a tree of imports that begins here, each with the name that it has from then on; and where the tree ends.
fn tree(tokens: &[String], mut at: usize, prefix: &[String], found: &mut Vec<(Vec<String>, String)>) -> usize {
    let mut path = prefix.to_vec();
    loop {
        match tokens.get(at).map(String::as_str) {
            Some(":") => at += 1,
            Some("{") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    at = tree(tokens, at, &path, found);
                    if tokens.get(at).is_some_and(|token| token == ",") {
                        at += 1;
                    }
                }
                return at + 1;
            }
            Some("as") => {
                let name = tokens.get(at + 1).cloned().unwrap_or_default();
                found.push((path, name));
                return at + 2;
            }
            None | Some("," | ";" | "}") => {
                let name = path.last().cloned().unwrap_or_default();
                found.push((path, name));
                return at;
            }
            Some(word) => {
                path.push(word.to_owned());
                at += 1;
            }
        }
    }
}

/// A crate's files as modules, and which of them each imports.
struct Crate {
    files: BTreeMap<Module, Vec<String>>,
    /// What a file gives on under a name of its own.
    given_on: BTreeMap<Module, Vec<String>>,
}

impl Crate {
    fn read(src: &Path) -> Self {
        let mut files = BTreeMap::new();
        for path in sources(src) {
            let relative = path.strip_prefix(src).unwrap().with_extension("");
            let mut module: Module =
                relative.components().map(|part| part.as_os_str().to_str().unwrap().to_owned()).collect();
            match module.last().map(String::as_str) {
                Some("mod") => drop(module.pop()),
                Some("lib") => module.clear(),
                Some("main") if !src.join("lib.rs").exists() => module.clear(),
                _ => {}
            }
            files.insert(module, tokens(&fs::read_to_string(&path).unwrap()));
        }
        let mut read = Self { files, given_on: BTreeMap::new() };
        for (module, tokens) in &read.files {
            for (path, name, public) in read.paths(module, tokens) {
                if public {
                    read.given_on.insert([module.clone(), vec![name]].concat(), path);
                }
            }
        }
        read
    }

    /// The paths that a file names, from the crate's root on; of its imports, whether they are public.
    fn paths(&self, module: &Module, tokens: &[String]) -> Vec<(Vec<String>, String, bool)> {
        let mut all = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            let mut found = Vec::new();
            let mut public = false;
            let after_a_path = at > 1 && tokens[at - 1] == ":" && tokens[at - 2] == ":";
            let leads_on = |at: usize| tokens[at + 1..].iter().take(2).filter(|next| *next == ":").count() == 2;
            if tokens[at] == "use" {
                // `pub`, `pub(crate)`, `pub(in crate::a)`.
                let before = tokens[..at].iter().rev().take_while(|token| !["{", "}", ";"].contains(&token.as_str()));
                public = before.take(12).any(|token| token == "pub");
                at = tree(tokens, at + 1, &[], &mut found);
            } else if !after_a_path && leads_on(at) {
                let mut path = vec![tokens[at].clone()];
                while leads_on(at) {
                    let Some(next) = tokens.get(at + 3) else { break };
                    path.push(next.clone());
                    at += 3;
                }
                found.push((path, String::new()));
                at += 1;
            } else {
                at += 1;
            }
            for (path, name) in found {
                if let Some(path) = self.rooted(module, path) {
                    all.push((path, name, public));
                }
            }
        }
        all
    }

    /// A path as from the crate's root; none of what is another crate's.
    fn rooted(&self, module: &Module, mut path: Vec<String>) -> Option<Vec<String>> {
        let mut from = module.clone();
        match path.first()?.as_str() {
            "crate" => from.clear(),
            "super" => {
                while path.first().is_some_and(|first| first == "super") {
                    from.pop();
                    path.remove(0);
                }
                return Some([from, path].concat());
            }
            "self" => {}
            child => {
                let below = self.files.contains_key(&[module.clone(), vec![child.to_owned()]].concat());
                return below.then(|| [from, path].concat());
            }
        }
        path.remove(0);
        Some([from, path].concat())
    }

    /// The file that a path leads to, whoever gives on what it names.
    fn file_of(&self, mut path: Vec<String>) -> Module {
        for _ in 0..4 {
            let given = (1..=path.len()).find_map(|end| self.given_on.get(&path[..end]).map(|to| (to, end)));
            match given {
                Some((to, end)) if !path[..end].starts_with(to) => path = [to.clone(), path[end..].to_vec()].concat(),
                _ => break,
            }
        }
        while !self.files.contains_key(&path) && path.pop().is_some() {}
        path
    }

    /// Which files each imports. Those that put a crate together, `lib.rs` and `main.rs`, may import all and are left out.
    fn imports(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let mut imports = BTreeMap::new();
        for (module, tokens) in self.files.iter().filter(|(module, _)| !module.is_empty()) {
            let paths = self.paths(module, tokens).into_iter().map(|(path, ..)| self.file_of(path));
            imports.insert(module, paths.filter(|to| to != module && !to.is_empty()).collect());
        }
        imports
    }

    /// The imports that lead back to where they come from.
    fn circles(&self) -> Vec<String> {
        let imports = self.imports();
        let reaches = |from: &Module, to: &Module| {
            let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
            while let Some(module) = next.pop() {
                if module == to {
                    return true;
                }
                if seen.insert(module) {
                    next.extend(imports.get(module).into_iter().flatten());
                }
            }
            false
        };
        let all = imports.iter().flat_map(|(from, to)| to.iter().map(move |to| (*from, to)));
        all.filter(|(from, to)| reaches(to, from))
            .map(|(from, to)| format!("{} imports {}", from.join("::"), to.join("::")))
            .collect()
    }
}

#[test]
fn no_file_imports_one_that_imports_it() {
    let members = ["crates", "services"].iter().flat_map(|folder| fs::read_dir(workspace().join(folder)).unwrap());
    let members =
        members.map(|entry| entry.unwrap().path()).chain(["cli", "bench", "e2e"].map(|name| workspace().join(name)));
    let (mut circles, mut edges) = (Vec::new(), 0);
    for member in members {
        let read = Crate::read(&member.join("src"));
        edges += read.imports().values().map(BTreeSet::len).sum::<usize>();
        circles.extend(read.circles().into_iter().map(|circle| format!("{}: {circle}", member.display())));
    }
    assert!(edges > 300, "the files are read: {edges}");
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

#[test]
fn a_circle_is_found_however_it_is_written() {
    let folder = std::env::temp_dir().join(format!("flotilla-imports-{}", std::process::id()));
    let files = [
        ("lib.rs", "mod a;\nmod b;\nmod c;\nmod d;\nmod f;\nmod g;\npub(in crate::d) use d::Deep;\n"),
        ("a.rs", "use std::fmt;\nuse crate::{b::{self, B as Other}, c};\nconst C: char = '\"';\n"),
        ("b.rs", "// use crate::a;\nfn f() { \"crate::a\"; }\n#[cfg(test)]\nmod tests { use crate::a; }\n"),
        ("c.rs", "fn f() -> u8 { crate::Deep::new() }\n"),
        ("d/mod.rs", "mod e;\npub use e::Deep;\n"),
        ("d/e.rs", "pub struct Deep;\nfn f() { super::super::a::g() }\n"),
        (
            "f.rs",
            "struct F {\n    g: &'static super::g::G,\n}\nfn f() -> &'static str {\n    \"a\n crate::a \\\" b\"\n}\n",
        ),
        ("g.rs", "#[cfg(test)]\nfn early() {}\nfn g(of: crate::f::F) { r#\" \" crate::a \"# }\n"),
    ];
    for (name, text) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let circles = Crate::read(&folder).circles();
    fs::remove_dir_all(&folder).unwrap();
    let expected = ["a imports c", "c imports d::e", "d::e imports a", "f imports g", "g imports f"];
    assert_eq!(circles, expected);
}
