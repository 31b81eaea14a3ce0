//! A real OpenID provider (`e2e/provider`), and people who sign in at it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::{Client, Response};
use serde_json::Value;

use crate::workspace;

/// What `scripts/provider.sh` ends with where Node or the package cannot be had.
const UNAVAILABLE: i32 = 69;
/// A verifier and its challenge (RFC 7636, B).
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
const REDIRECT: &str = "http://127.0.0.1:49152/callback";

/// The provider, which ends with this value.
pub struct OpenIdProvider {
    /// Its issuer's URL.
    pub issuer: String,
    /// None where the stack runs it.
    program: Option<(Child, BufReader<ChildStdout>)>,
    http: Client,
}

/// What a person has after signing in.
#[derive(Debug, Clone)]
pub struct SignedIn {
    /// For the fleet's directory.
    pub access_token: String,
    /// For the client that they signed in with, and nobody else.
    pub id_token: String,
    /// For the next access token.
    pub refresh_token: String,
}

impl OpenIdProvider {
    /// Starts it; none, which it says loudly, where it cannot be had.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start() -> Option<Self> {
        if !Self::is_there() {
            return None;
        }
        let mut command = Command::new(script());
        command.args(["run", "0"]);
        let mut program = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(program.stdout.take().unwrap());
        let ready = line(&mut said);
        let issuer = ready.strip_prefix("ready ").unwrap_or_else(|| panic!("it says: {ready}")).to_owned();
        let mut provider = Self::at(&issuer);
        provider.program = Some((program, said));
        Some(provider)
    }

    /// Whether it can be had; where not, it says so loudly.
    ///
    /// # Panics
    /// What it needs is there, and broken.
    #[must_use]
    pub fn is_there() -> bool {
        let checked = Command::new(script()).arg("check").stdin(Stdio::null()).status().unwrap();
        if checked.code() == Some(UNAVAILABLE) {
            let mut stderr = std::io::stderr();
            writeln!(stderr, "SKIPPED: nobody signs in at a real OpenID provider, which cannot be had").unwrap();
            return false;
        }
        assert!(checked.success(), "{checked}");
        true
    }

    /// One that somebody else runs.
    ///
    /// # Panics
    /// No HTTP client can be made.
    #[must_use]
    pub fn at(issuer: &str) -> Self {
        let http = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { issuer: issuer.to_owned(), program: None, http }
    }

    /// Signs by a new key from now on; the old ones are published all the same.
    ///
    /// # Panics
    /// It has ended.
    pub fn rotate(&mut self) {
        self.command("rotate");
    }

    /// Publishes the newest key alone.
    ///
    /// # Panics
    /// It has ended.
    pub fn forget(&mut self) {
        self.command("forget");
    }

    fn command(&mut self, command: &str) {
        let (program, said) = self.program.as_mut().expect("a provider of the test");
        writeln!(program.stdin.as_mut().unwrap(), "{command}").unwrap();
        let done = line(said);
        assert!(done.starts_with("keys "), "{done}");
    }

    /// A person signs in with a browser: authorization code with PKCE (RFC 8252).
    ///
    /// # Panics
    /// The provider refuses it.
    pub async fn sign_in(&self, login: &str) -> SignedIn {
        self.sign_in_by(login, "").await
    }

    /// The same by this class of authentication.
    ///
    /// # Panics
    /// The provider refuses it.
    pub async fn sign_in_by(&self, login: &str, acr: &str) -> SignedIn {
        let asked = format!(
            "{}/auth?client_id=flotilla-cli&response_type=code&scope=openid+email+profile&state=s&redirect_uri={}\
             &code_challenge={CHALLENGE}&code_challenge_method=S256&acr_values={acr}",
            self.issuer,
            REDIRECT.replace(':', "%3A").replace('/', "%2F"),
        );
        let begun = self.http.get(asked).send().await.unwrap();
        let mut browser = Browser::default();
        browser.keep(&begun);
        let back = location(&self.fill_in(&mut browser, &begun, login).await);
        let code = back.split(['?', '&']).find_map(|pair| pair.strip_prefix("code=")).unwrap().to_owned();
        let grant = [
            ("grant_type", "authorization_code"),
            ("code", &code),
            ("redirect_uri", REDIRECT),
            ("code_verifier", VERIFIER),
        ];
        self.token(&grant).await
    }

    /// A person opens the link that a terminal shows, confirms its code, and signs in there (RFC 8628, 3.3).
    ///
    /// # Panics
    /// The provider refuses it.
    pub async fn confirm(&self, link: &str, login: &str) {
        let mut browser = Browser::default();
        // The page sends itself, so that a link does nothing that nobody wanted.
        let mut page = browser.get(&self.http, link).await;
        for _ in 0..2 {
            let form = fields(&page);
            let sent = self.http.post(format!("{}/device", self.issuer)).header(COOKIE, browser.cookies()).form(&form);
            let answer = sent.send().await.unwrap();
            browser.keep(&answer);
            if answer.headers().contains_key(LOCATION) {
                let signed_in = self.fill_in(&mut browser, &answer, login).await;
                assert!(signed_in.text().await.unwrap().contains("Signed in"), "{login}");
                return;
            }
            page = answer.text().await.unwrap();
        }
        panic!("nobody is asked to sign in: {page}");
    }

    /// Fills in the form to which an answer leads; what the provider answers when it has it.
    async fn fill_in(&self, browser: &mut Browser, to: &Response, login: &str) -> Response {
        let form = format!("{}{}", self.issuer, location(to));
        let filled = self.http.post(form).header(COOKIE, browser.cookies()).form(&[("login", login)]).send();
        let filled = filled.await.unwrap();
        browser.keep(&filled);
        let back = self.http.get(location(&filled)).header(COOKIE, browser.cookies()).send().await.unwrap();
        browser.keep(&back);
        back
    }

    /// The next access token of a person who signed in.
    ///
    /// # Panics
    /// The provider refuses it.
    pub async fn refresh(&self, signed_in: &SignedIn) -> SignedIn {
        self.token(&[("grant_type", "refresh_token"), ("refresh_token", &signed_in.refresh_token)]).await
    }

    async fn token(&self, grant: &[(&str, &str)]) -> SignedIn {
        let form = [&[("client_id", "flotilla-cli")], grant].concat();
        let answer = self.http.post(format!("{}/token", self.issuer)).form(&form).send().await.unwrap();
        let body: Value = answer.json().await.unwrap();
        let text = |name: &str| body[name].as_str().unwrap_or_else(|| panic!("{body}")).to_owned();
        SignedIn {
            access_token: text("access_token"),
            id_token: text("id_token"),
            refresh_token: text("refresh_token"),
        }
    }
}

impl Drop for OpenIdProvider {
    fn drop(&mut self) {
        if let Some((program, _)) = &mut self.program {
            drop(program.stdin.take());
            program.wait().ok();
        }
    }
}

/// The cookies of a browser.
#[derive(Default)]
struct Browser(BTreeMap<String, String>);

impl Browser {
    fn keep(&mut self, answer: &Response) {
        for cookie in answer.headers().get_all(SET_COOKIE) {
            let cookie = cookie.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = cookie.split_once('=').unwrap();
            self.0.insert(name.to_owned(), value.to_owned());
        }
    }

    fn cookies(&self) -> String {
        self.0.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ")
    }

    async fn get(&mut self, http: &Client, url: &str) -> String {
        let answer = http.get(url).header(COOKIE, self.cookies()).send().await.unwrap();
        self.keep(&answer);
        answer.text().await.unwrap()
    }
}

/// The hidden fields of a page's form.
fn fields(page: &str) -> Vec<(String, String)> {
    let attribute = |tag: &str, name: &str| {
        tag.split_once(&format!("{name}=\"")).and_then(|(_, rest)| Some(rest.split_once('"')?.0.to_owned()))
    };
    let inputs = page.split("<input").skip(1).map(|rest| rest.split('>').next().unwrap_or_default());
    inputs.filter_map(|tag| Some((attribute(tag, "name")?, attribute(tag, "value").unwrap_or_default()))).collect()
}

fn script() -> PathBuf {
    workspace().join("scripts/provider.sh")
}

fn line(said: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

fn location(response: &Response) -> String {
    let location = response.headers().get(LOCATION);
    location.unwrap_or_else(|| panic!("{response:?}")).to_str().unwrap().to_owned()
}
