//! A real OpenID provider (`e2e/provider`), and people who sign in at it.

use std::io::{BufRead as _, BufReader, Write as _};
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
    program: Child,
    said: BufReader<ChildStdout>,
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
        let script = workspace().join("scripts/provider.sh");
        let checked = Command::new(&script).arg("check").stdin(Stdio::null()).status().unwrap();
        if checked.code() == Some(UNAVAILABLE) {
            let mut stderr = std::io::stderr();
            writeln!(stderr, "SKIPPED: nobody signs in at a real OpenID provider, which cannot be had").unwrap();
            return None;
        }
        assert!(checked.success(), "{checked}");
        let mut program =
            Command::new(&script).args(["run", "0"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(program.stdout.take().unwrap());
        let ready = line(&mut said);
        let issuer = ready.strip_prefix("ready ").unwrap_or_else(|| panic!("it says: {ready}")).to_owned();
        let http = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Some(Self { issuer, program, said, http })
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
        writeln!(self.program.stdin.as_mut().unwrap(), "{command}").unwrap();
        let done = line(&mut self.said);
        assert!(done.starts_with("keys "), "{done}");
    }

    /// A person signs in with a browser: authorization code with PKCE (RFC 8252).
    ///
    /// # Panics
    /// The provider refuses it.
    pub async fn sign_in(&self, login: &str) -> SignedIn {
        let asked = format!(
            "{}/auth?client_id=flotilla-cli&response_type=code&scope=openid+email+profile&state=s&redirect_uri={}\
             &code_challenge={CHALLENGE}&code_challenge_method=S256",
            self.issuer,
            REDIRECT.replace(':', "%3A").replace('/', "%2F"),
        );
        let begun = self.http.get(asked).send().await.unwrap();
        let cookies: Vec<_> = begun
            .headers()
            .get_all(SET_COOKIE)
            .iter()
            .map(|cookie| cookie.to_str().unwrap().split(';').next().unwrap().to_owned())
            .collect();
        let cookies = cookies.join("; ");
        let form = format!("{}{}", self.issuer, location(&begun));
        let filled = self.http.post(form).header(COOKIE, &cookies).form(&[("login", login)]).send().await.unwrap();
        let back = self.http.get(location(&filled)).header(COOKIE, &cookies).send().await.unwrap();
        let back = location(&back);
        let code = back.split(['?', '&']).find_map(|pair| pair.strip_prefix("code=")).unwrap().to_owned();
        let grant = [
            ("grant_type", "authorization_code"),
            ("code", &code),
            ("redirect_uri", REDIRECT),
            ("code_verifier", VERIFIER),
        ];
        self.token(&grant).await
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
        drop(self.program.stdin.take());
        self.program.wait().ok();
    }
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
