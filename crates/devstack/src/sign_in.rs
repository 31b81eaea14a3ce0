//! A person who signs in at the provider of `e2e/provider`, as a browser does that somebody types into: for the demo and for tests.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::{Client, Response};
use serde_json::Value;

/// A verifier and its challenge (RFC 7636, B).
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
/// Nobody listens there: the code is in the address to which the provider leads.
const REDIRECT: &str = "http://127.0.0.1:49152/callback";
/// The client of the command, which the provider knows.
const CLIENT: &str = "flotilla-cli";

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

/// A browser at a provider.
pub struct Browser {
    issuer: String,
    http: Client,
    cookies: BTreeMap<String, String>,
}

impl Browser {
    /// A new one, at the provider of this issuer's URL.
    ///
    /// # Errors
    /// No HTTP client can be made.
    pub fn at(issuer: &str) -> Result<Self, anyhow::Error> {
        let http = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { issuer: issuer.to_owned(), http, cookies: BTreeMap::new() })
    }

    /// A person signs in by an authorization code with PKCE (RFC 8252), by this class of authentication if it is not empty.
    ///
    /// # Errors
    /// The provider does not answer, or refuses it.
    pub async fn sign_in(mut self, login: &str, acr: &str) -> Result<SignedIn, anyhow::Error> {
        let asked = format!(
            "{}/auth?client_id={CLIENT}&response_type=code&scope=openid+email+profile&state=s&redirect_uri={}\
             &code_challenge={CHALLENGE}&code_challenge_method=S256&acr_values={acr}",
            self.issuer,
            REDIRECT.replace(':', "%3A").replace('/', "%2F"),
        );
        let begun = self.get(&asked).await?;
        let back = location(&self.fill_in(&begun, login).await?)?;
        let code = back.split(['?', '&']).find_map(|pair| pair.strip_prefix("code="));
        let code = code.with_context(|| format!("no code: {back}"))?;
        let grant = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", REDIRECT),
            ("code_verifier", VERIFIER),
        ];
        self.token(&grant).await
    }

    /// A person opens the link that a terminal shows, confirms its code, and signs in there (RFC 8628, 3.3).
    ///
    /// # Errors
    /// As [`sign_in`](Self::sign_in).
    pub async fn confirm(mut self, link: &str, login: &str) -> Result<(), anyhow::Error> {
        // The page sends itself, so that a link does nothing that nobody wanted.
        let mut page = self.get(link).await?.text().await?;
        for _ in 0..2 {
            let sent = self.http.post(format!("{}/device", self.issuer)).form(&fields(&page));
            let answer = self.send(sent).await?;
            if answer.headers().contains_key(LOCATION) {
                let said = self.fill_in(&answer, login).await?.text().await?;
                ensure!(said.contains("Signed in"), "{login} is not signed in: {said}");
                return Ok(());
            }
            page = answer.text().await?;
        }
        bail!("nobody is asked to sign in: {page}")
    }

    /// The next tokens of a person who signed in.
    ///
    /// # Errors
    /// As [`sign_in`](Self::sign_in).
    pub async fn refresh(&self, signed_in: &SignedIn) -> Result<SignedIn, anyhow::Error> {
        self.token(&[("grant_type", "refresh_token"), ("refresh_token", &signed_in.refresh_token)]).await
    }

    /// Fills in the form to which an answer leads; what the provider answers when it has it.
    async fn fill_in(&mut self, to: &Response, login: &str) -> Result<Response, anyhow::Error> {
        let form = format!("{}{}", self.issuer, location(to)?);
        let filled = self.send(self.http.post(form).form(&[("login", login)])).await?;
        self.get(&location(&filled)?).await
    }

    async fn get(&mut self, url: &str) -> Result<Response, anyhow::Error> {
        self.send(self.http.get(url)).await
    }

    async fn send(&mut self, request: reqwest::RequestBuilder) -> Result<Response, anyhow::Error> {
        let cookies = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ");
        let answer = request.header(COOKIE, cookies).send().await?;
        for cookie in answer.headers().get_all(SET_COOKIE) {
            let pair = cookie.to_str()?.split(';').next().unwrap_or_default();
            let (name, value) = pair.split_once('=').context("a cookie without a value")?;
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
        Ok(answer)
    }

    async fn token(&self, grant: &[(&str, &str)]) -> Result<SignedIn, anyhow::Error> {
        let form = [&[("client_id", CLIENT)], grant].concat();
        let body: Value = self.http.post(format!("{}/token", self.issuer)).form(&form).send().await?.json().await?;
        let text = |name: &str| {
            body[name].as_str().map(ToOwned::to_owned).with_context(|| format!("no {name}: {}", body["error"]))
        };
        Ok(SignedIn {
            access_token: text("access_token")?,
            id_token: text("id_token")?,
            refresh_token: text("refresh_token")?,
        })
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

fn location(response: &Response) -> Result<String, anyhow::Error> {
    let location = response.headers().get(LOCATION);
    let location = location.with_context(|| format!("the provider leads nowhere: {}", response.status()))?;
    Ok(location.to_str()?.to_owned())
}
