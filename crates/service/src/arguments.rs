//! From flags and environment to a configuration: `clap` parses each value, and one error names every problem.
//!
//! A secret is an argument whose environment is hidden (`hide_env_values`), and a [`Secret`](crate::secret::Secret). It may come from a file
//! instead, which `--<name>-file` or `<VARIABLE>_FILE` names, or from what a command prints (`--<name>-command`, `<VARIABLE>_COMMAND`); both
//! are read again while the process runs. No message repeats a secret: `clap`'s own text parsers repeat no value, and our parser for a
//! secret must not.

use std::collections::BTreeSet;
use std::fmt::Display;

use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command};

use crate::secret;

/// The configuration of a service's program.
pub trait Settings: Args {
    /// Notes values that are each well-formed but contradict each other.
    fn check(&self, _problems: &mut ConfigErrors) {}
}

/// Everything that is wrong with a configuration, a line each.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(Vec<String>);

impl Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} wrong value(s) in the configuration:", self.0.len())?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}

/// Collects the problems.
#[derive(Debug, Default)]
pub struct ConfigErrors(Vec<String>);

impl ConfigErrors {
    /// Notes a problem with a variable.
    pub fn add(&mut self, variable: &str, problem: impl Display) {
        self.0.push(format!("{variable}: {problem}"));
    }
}

/// The subcommand that takes these settings. It accepts every text, so that [`parse`] can name all the wrong ones.
#[must_use]
pub fn command<S: Settings>(name: &'static str) -> Command {
    let strict = S::augment_args(Command::new(name));
    let secrets = strict.get_arguments().filter(|arg| arg.is_hide_env_values_set());
    let elsewhere: Vec<Arg> = secrets.flat_map(|secret| [FILE, COMMAND].map(|kind| kind.of(secret))).collect();
    strict.mut_args(|arg| takes_anything(says_more(arg))).args(elsewhere)
}

/// What `--help` says of an argument that its parser knows and a text does not.
fn says_more(arg: Arg) -> Arg {
    let possible: Vec<String> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    if !possible.is_empty() {
        help += &format!(" [{}]", possible.join(" or "));
    }
    match (arg.is_required_set(), arg.is_hide_env_values_set()) {
        (true, true) => help += " [required, here, in a file or from a command]",
        (true, false) => help += " [required]",
        (false, _) => {}
    }
    arg.help(help)
}

fn takes_anything(arg: Arg) -> Arg {
    arg.required(false).value_parser(ValueParser::string())
}

/// The settings that were matched by their [`command`].
///
/// # Errors
/// Names every value that is missing or wrong, but no secret.
pub fn parse<S: Settings>(given: &ArgMatches) -> Result<S, ConfigError> {
    let mut problems = ConfigErrors::default();
    let mut command = S::augment_args(Command::new("settings").no_binary_name(true));
    let mut words: Vec<String> = Vec::new();
    for arg in command.clone().get_arguments() {
        let word = |value| format!("--{}={value}", arg.get_long().unwrap_or_default());
        match values(arg, given) {
            Ok(values) if values.is_empty() && arg.is_required_set() => {
                problems.add(variable(arg), missing(arg));
                command = command.mut_arg(arg.get_id(), takes_anything);
            }
            Ok(values) => words.extend(values.into_iter().map(word)),
            Err(problem) => {
                problems.0.push(problem);
                command = command.mut_arg(arg.get_id(), takes_anything);
            }
        }
    }
    // clap stops at the first value that it cannot parse: note that one, and parse the others again.
    let mut noted = BTreeSet::new();
    let matches = loop {
        let error = match command.clone().try_get_matches_from(&words) {
            Ok(matches) => break matches,
            Err(error) => error,
        };
        // An argument can be shown, as the error does it, once its command is built.
        let mut built = command.clone();
        built.build();
        let wrong = built.get_arguments().find(|arg| is_about(&error, arg));
        let Some(wrong) = wrong.filter(|arg| noted.insert(arg.get_id().clone())) else {
            problems.0.push(error.kind().to_string());
            return Err(ConfigError(problems.0));
        };
        problems.add(variable(wrong), why(&error));
        command = command.mut_arg(wrong.get_id(), takes_anything);
    };
    if problems.0.is_empty() {
        let settings = S::from_arg_matches(&matches).map_err(|error| ConfigError(vec![error.kind().to_string()]))?;
        settings.check(&mut problems);
        if problems.0.is_empty() {
            return Ok(settings);
        }
    }
    Err(ConfigError(problems.0))
}

/// Where a secret may be, if not in its variable.
struct Elsewhere {
    name: &'static str,
    variable: &'static str,
    help: &'static str,
}

const FILE: Elsewhere = Elsewhere { name: "file", variable: "FILE", help: "A file that holds" };
const COMMAND: Elsewhere = Elsewhere { name: "command", variable: "COMMAND", help: "A command of `sh` that prints" };

impl Elsewhere {
    /// The argument that says so.
    fn of(&self, secret: &Arg) -> Arg {
        let variable = variable(secret);
        Arg::new(self.id(secret))
            .long(format!("{}-{}", secret.get_long().unwrap_or_default(), self.name))
            .env(format!("{variable}_{}", self.variable))
            .value_name(self.variable)
            // A command may hold a secret itself.
            .hide_env_values(true)
            .help(format!("{} what {variable} would", self.help))
    }

    fn id(&self, secret: &Arg) -> String {
        format!("{}_{}", secret.get_id(), self.name)
    }
}

/// The texts that were given for an argument.
fn values(arg: &Arg, given: &ArgMatches) -> Result<Vec<String>, String> {
    let id = arg.get_id().as_str();
    if given.value_source(id) == Some(ValueSource::DefaultValue) {
        return Ok(Vec::new());
    }
    let values = given.get_many(id).map(|texts| texts.cloned().collect()).unwrap_or_default();
    if !arg.is_hide_env_values_set() {
        return Ok(values);
    }
    let name = variable(arg);
    let file = given.get_one::<String>(&FILE.id(arg)).map(|path| secret::file(path));
    let command = given.get_one::<String>(&COMMAND.id(arg)).map(|command| secret::command(command));
    if values.iter().any(|text| text.starts_with(char::is_control)) {
        return Err(format!("{name}: must not begin with a control character"));
    }
    let all: Vec<String> = values.into_iter().chain(file).chain(command).collect();
    if all.len() > 1 {
        return Err(format!("{name}: set one of {name}, {name}_FILE and {name}_COMMAND"));
    }
    Ok(all)
}

fn missing(arg: &Arg) -> String {
    let name = variable(arg);
    if arg.is_hide_env_values_set() {
        format!(
            "is missing: set it, or {name}_FILE to the file that holds it, or {name}_COMMAND to a command that prints it"
        )
    } else {
        "is missing".to_owned()
    }
}

/// What an operator sets: the variable, or the flag of an argument that has none.
fn variable(arg: &Arg) -> &str {
    arg.get_env().and_then(|name| name.to_str()).unwrap_or_else(|| arg.get_id().as_str())
}

fn is_about(error: &clap::Error, arg: &Arg) -> bool {
    matches!(error.get(ContextKind::InvalidArg), Some(ContextValue::String(about)) if *about == arg.to_string())
}

/// What is wrong with a value, without the value: it may be a secret.
fn why(error: &clap::Error) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string);
    let possible = || match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) => Some(format!("is not one of {}", values.join(", "))),
        _ => None,
    };
    let empty = || (error.kind() == ErrorKind::InvalidValue).then(|| "is empty".to_owned());
    source.or_else(possible).or_else(empty).unwrap_or_else(|| error.kind().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[derive(Debug, Args)]
    struct Shop {
        /// Where it is.
        #[arg(long, env = "FLOTILLA_SHOP_PORT")]
        port: u16,
        /// Whether it is open.
        #[arg(long, env = "FLOTILLA_SHOP_OPEN", default_value = "true", action = clap::ArgAction::Set)]
        open: bool,
        /// The key of its lock.
        #[arg(long, env = "FLOTILLA_SHOP_KEY", hide_env_values = true, value_parser = secret)]
        key: Secret,
        /// The key of its till.
        #[arg(long, env = "FLOTILLA_SHOP_TILL", hide_env_values = true)]
        till: Option<Secret>,
        /// What it sells.
        #[arg(long, env = "FLOTILLA_SHOP_GOODS", value_delimiter = ',')]
        goods: Vec<u8>,
        /// How many may enter.
        #[arg(long, env = "FLOTILLA_SHOP_GUESTS", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=9))]
        guests: u32,
    }

    fn secret(text: &str) -> Result<Secret, String> {
        let secret: Secret = text.parse()?;
        if secret.expose().len() < 4 { Err("is too short".to_owned()) } else { Ok(secret) }
    }

    impl Settings for Shop {
        fn check(&self, problems: &mut ConfigErrors) {
            if self.goods.len() > usize::try_from(self.guests).unwrap() {
                problems.add("FLOTILLA_SHOP_GOODS", "are more than FLOTILLA_SHOP_GUESTS");
            }
        }
    }

    fn shop(line: &[&str]) -> Result<Shop, String> {
        let words = std::iter::once("shop").chain(line.iter().copied());
        parse(&command::<Shop>("shop").get_matches_from(words)).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_given_is_taken() {
        let shop = shop(&["--port", "80", "--key=hunter2", "--goods", "1,2", "--open", "false"]).unwrap();
        assert_eq!((shop.port, shop.open, shop.goods, shop.guests), (80, false, vec![1, 2], 3));
        assert_eq!(shop.key.expose(), "hunter2");
    }

    #[test]
    fn every_wrong_value_is_named_at_once() {
        let error = shop(&["--open", "maybe", "--goods", "1,many", "--guests", "10", "--key", "abc"]).unwrap_err();
        for part in [
            "5 wrong",
            "FLOTILLA_SHOP_PORT: is missing",
            "FLOTILLA_SHOP_OPEN: is not one of true, false",
            "FLOTILLA_SHOP_GOODS: invalid digit",
            "FLOTILLA_SHOP_GUESTS: 10 is not in 1..=9",
            "FLOTILLA_SHOP_KEY: is too short",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(!error.contains("abc"), "{error}");
    }

    #[test]
    fn values_that_do_not_go_together_are_named() {
        let error = shop(&["--port", "80", "--key", "hunter2", "--goods", "1,2,3,4"]).unwrap_err();
        assert!(error.contains("FLOTILLA_SHOP_GOODS: are more than FLOTILLA_SHOP_GUESTS"), "{error}");
    }

    #[test]
    fn a_secret_may_stand_in_a_file_and_shows_itself_nowhere() {
        let file = std::env::temp_dir().join(format!("shop-key-{}", std::process::id()));
        std::fs::write(&file, "hunter2\n").unwrap();
        let path = file.to_str().unwrap();
        let shop_by_file = shop(&["--port", "80", "--key-file", path]).unwrap();
        assert_eq!(shop_by_file.key.expose(), "hunter2");
        assert!(!format!("{shop_by_file:?}").contains("hunter2"));
        let by_command = shop(&["--port", "80", "--key-file", path, "--till-command", &format!("cat {path}")]).unwrap();
        assert_eq!(by_command.till.unwrap().expose(), "hunter2");
        let both = shop(&["--port", "80", "--key-file", path, "--key", "hunter2"]).unwrap_err();
        let one =
            "FLOTILLA_SHOP_KEY: set one of FLOTILLA_SHOP_KEY, FLOTILLA_SHOP_KEY_FILE and FLOTILLA_SHOP_KEY_COMMAND";
        assert!(both.contains(one), "{both}");
        std::fs::remove_file(&file).unwrap();
        let gone = shop(&["--port", "80", "--key-file", path]).unwrap_err();
        assert!(gone.contains(&format!("FLOTILLA_SHOP_KEY: reading {path}: No such file")), "{gone}");
        let marked = shop(&["--port", "80", "--key", &secret::file(path)]).unwrap_err();
        assert!(marked.contains("FLOTILLA_SHOP_KEY: must not begin with a control character"), "{marked}");
        let none = shop(&["--port", "80"]).unwrap_err();
        assert!(none.contains("FLOTILLA_SHOP_KEY: is missing: set it, or FLOTILLA_SHOP_KEY_FILE"), "{none}");
    }

    #[test]
    fn help_says_what_is_required_and_what_is_possible() {
        let help = command::<Shop>("shop").render_long_help().to_string();
        for part in [
            "Where it is [required]",
            "[env: FLOTILLA_SHOP_PORT",
            "Whether it is open [true or false]",
            "The key of its lock [required, here, in a file or from a command]",
            "--key-file <FILE>",
            "--key-command <COMMAND>",
        ] {
            assert!(help.contains(part), "{part} in {help}");
        }
    }
}
