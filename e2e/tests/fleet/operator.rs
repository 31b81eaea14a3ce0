//! The `flotilla` command, as operators and scripts use it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::elsewhere::Desk;
use crate::with_fleet;

#[test]
fn the_demo_shows_the_whole_way() {
    with_fleet(|fleet, _| async {
        let way = fleet.json(&["demo"]).await;
        assert_eq!(way["traceId"].as_str().unwrap().len(), 32);
        let times: Vec<f64> =
            way["stages"].as_array().unwrap().iter().map(|stage| stage["milliseconds"].as_f64().unwrap()).collect();
        assert_eq!(times.len(), 4);
        // Each stage follows the one before it; clocks of one machine, to the millisecond.
        assert!(times.windows(2).all(|pair| pair[0] <= pair[1] + 1.0), "{way}");
        // From another folder, with the keys of the development issuer and provider.
        let desk = Desk::of(fleet).await;
        desk.takes_keys(fleet);
        assert!(desk.asks(&["demo"]).await.contains("traceId"));
    });
}

#[test]
fn status_tells_scripts_what_they_need() {
    with_fleet(|fleet, _| async {
        let status = fleet.json(&["status"]).await;
        let units = status["units"].as_array().unwrap();
        let names: Vec<&str> = units.iter().map(|unit| unit["name"].as_str().unwrap()).collect();
        for name in ["postgres", "nats", "opensearch", "issuer", "operations", "todo", "search-projector", "gateway"] {
            assert!(names.contains(&name), "{names:?}");
        }
        for unit in units {
            for field in ["name", "kind", "pid", "address", "state", "restarts", "log"] {
                assert!(!unit[field].is_null(), "{field} of {unit}");
            }
            assert!(["infra", "service"].contains(&unit["kind"].as_str().unwrap()));
            if ["postgres", "nats", "opensearch"].contains(&unit["name"].as_str().unwrap()) {
                assert!(Path::new(unit["dataDir"].as_str().unwrap()).is_dir());
                assert!(!unit["url"].as_str().unwrap().contains('@'), "no secrets in {unit}");
            }
        }
        assert!(fleet.login("postgres")["url"].as_str().unwrap().contains('@'));
        let credentials = fleet.unit("nats").creds_file.unwrap();
        assert!(std::fs::read_to_string(&credentials).unwrap().contains("BEGIN NATS USER JWT"));
        for entry in std::fs::read_dir(credentials.parent().unwrap()).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "keys and credentials are their owner's alone");
        }
        for folder in ["data", "logs", "secrets", "conf"] {
            let mode = std::fs::metadata(fleet.home.join(folder)).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{folder} is its owner's alone");
        }
        let text = String::from_utf8(fleet.run(&["status"]).await.stdout).unwrap();
        assert!(text.contains("gateway") && text.contains("ready"), "{text}");
    });
}

#[test]
fn what_is_held_of_a_tenant_is_exported_and_erased() {
    with_fleet(|fleet, _| async {
        let (lea, _kim) = (fleet.caller("leaving", "lea").await, fleet.caller("leaving", "kim").await);
        // Todo hears of a new member within seconds.
        testkit::until("a member gets a todo", || async {
            let todo = json!({"title": "careen the hull", "assignee": "kim"});
            lea.send(Method::POST, "/v1/todos", Some(todo)).await.status == 200
        })
        .await;
        testkit::until("it is found", || async { lea.search("careen").await.len() == 1 }).await;
        let token = fleet.run(&["token", "--operator", "--user", "olga"]).await.stdout;
        let token = String::from_utf8(token).unwrap().trim().to_owned();
        let operate = async |args: &[&str]| {
            let args = [args, &["--reason", "the contract has ended"]].concat();
            let output = fleet.command(&args).env("FLOTILLA_OPERATOR_TOKEN", &token).output().await.unwrap();
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
        };
        let (lines, _) = operate(&["data", "export", "--tenant", "leaving", "--person", "kim"]).await;
        let rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [member, todo] = rows.as_slice() else { panic!("{lines}") };
        assert_eq!(
            (&member["service"], &member["table"], &member["row"]["user_id"]),
            (&json!("identity"), &json!("member"), &json!("kim"))
        );
        assert_eq!(
            (&todo["service"], &todo["table"], &todo["row"]["title"]),
            (&json!("todo"), &json!("todo"), &json!("careen the hull"))
        );
        let erased = async || {
            let (said, error) = operate(&["--json", "data", "erase", "--tenant", "leaving", "--yes"]).await;
            serde_json::from_str::<Value>(&said).unwrap_or_else(|_| panic!("{error}"))["todo"]["todo"].clone()
        };
        assert_eq!(erased().await, 1);
        testkit::until("it is found no more", || async { lea.search("careen").await.is_empty() }).await;
        assert_eq!(erased().await, 0);
        let (_, unknown) = operate(&["data", "export", "--tenant", "leaving", "--service", "gateway"]).await;
        assert!(unknown.contains("holds no data of tenants"), "{unknown}");
        let silent = fleet.run(&["data", "export", "--tenant", "leaving"]).await;
        assert!(String::from_utf8(silent.stderr).unwrap().contains("--reason must say why"));
    });
}

/// Everyone on the machine reaches the node's port; they read and change nothing there.
#[test]
fn the_search_node_takes_nobody_without_a_login() {
    with_fleet(|fleet, _| async {
        let unit = fleet.unit("opensearch");
        let said = String::from_utf8(fleet.run(&["status"]).await.stdout).unwrap();
        if unit.creds_file.is_none() {
            eprintln!("SKIPPED: this machine lets us have no network namespace, so the node has no login");
            assert!(said.contains("docs/security.md#opensearch"), "{said}");
            return;
        }
        assert!(!said.contains("docs/security.md#opensearch"), "{said}");
        let login = fleet.login("opensearch");
        let (user, password) = (login["user"].as_str().unwrap(), login["password"].as_str().unwrap());
        let base = unit.url.clone().unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let index = || http.get(format!("{base}/todos/_search"));
        for (who, request) in [
            ("nobody", index()),
            ("a wrong password", index().basic_auth(user, Some(&password[1..]))),
            ("no password", index().basic_auth(user, None::<&str>)),
            ("a wrong user", index().basic_auth("admin", Some(password))),
            ("two logins", index().basic_auth("admin", Some("admin")).basic_auth(user, Some(password))),
            ("a login in the query", http.get(format!("{base}/todos/_search?user={user}&password={password}"))),
            ("a change", http.delete(format!("{base}/todos"))),
        ] {
            assert_eq!(request.send().await.unwrap().status(), 401, "{who}");
        }
        assert_eq!(index().basic_auth(user, Some(password)).send().await.unwrap().status(), 200);
        // The node itself, its other port too, listens where nothing on this machine reaches it.
        let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net")).unwrap();
        assert_ne!(namespace(&unit.pid.unwrap().to_string()), namespace("self"));
    });
}

/// Nothing recurs here, so that nothing is handled for it.
fn is_measured(stage: &Value) -> bool {
    stage["of"] == "todo-recurrence" || stage["count"].as_f64() > Some(0.0)
}

#[test]
fn status_answers_the_first_questions_of_an_operator() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("status", "ann").await;
        ann.create(serde_json::json!({"title": "something to measure"})).await;
        testkit::until("each stage has been measured", || async {
            let status = fleet.json(&["status"]).await;
            status["stages"].as_array().unwrap().iter().all(is_measured)
        })
        .await;
        let status = fleet.json(&["status"]).await;
        let overview = &status["outboxes"]["todo"]["overview"];
        assert!(overview["leader"].is_string() && overview["epoch"].as_i64() > Some(0), "{overview}");
        assert!(status["outboxes"]["todo"]["streamTail"].as_u64() > Some(0), "{status}");
        let consumers: Vec<&str> =
            status["consumers"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
        assert!(consumers.contains(&"search-projector"), "{consumers:?}");
        assert!(status["deadLetters"]["stats"]["letters"].is_i64(), "{status}");
        let mut watch = fleet.command(&["status", "--watch", "--every", "1"]);
        let mut watch = watch.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut shown = tokio::io::BufReader::new(watch.stdout.take().unwrap());
        let (mut text, mut screens) = (String::new(), 0);
        while screens < 2 {
            text.clear();
            assert!(tokio::io::AsyncBufReadExt::read_line(&mut shown, &mut text).await.unwrap() > 0, "it goes on");
            assert!(!text.contains('\x1b'), "a pipe is no screen to be cleared: {text:?}");
            screens += usize::from(text.contains("Ctrl-C ends it"));
        }
        watch.kill().await.unwrap();
    });
}

/// An alert on a metric that nobody exports never fires, and nobody notices.
#[test]
fn every_metric_that_an_alert_names_is_exported() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("metrics", "ann").await;
        ann.create(serde_json::json!({"title": "something to measure"})).await;
        let rules = std::fs::read_to_string(e2e::workspace().join("infra/prometheus/rules.yml")).unwrap();
        let words = rules
            .lines()
            .filter_map(|line| line.trim().strip_prefix("expr: "))
            .flat_map(|expr| expr.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).map(ToOwned::to_owned));
        let ours = ["outbox_", "consumer_", "dlq_", "search_", "due_", "upstream_", "degraded_", "database_", "clock_"];
        let metrics: std::collections::BTreeSet<String> =
            words.filter(|word| ours.iter().any(|prefix| word.starts_with(prefix))).collect();
        assert!(metrics.len() > 16, "{metrics:?}");
        // Exported by the kind of letter, once there is one: the tests of operations cover these.
        let later = ["dlq_unsettled_letters", "dlq_oldest_unsettled_seconds", "dlq_deaths_total"];
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        for metric in metrics.iter().filter(|metric| !later.contains(&metric.as_str())) {
            testkit::until(&format!("{metric} is exported"), || async {
                let mut exported = false;
                for service in ["todo", "search-projector", "operations", "gateway"] {
                    let url = format!("http://{}/metrics", fleet.unit(service).ops.unwrap());
                    let text = http.get(url).send().await.unwrap().text().await.unwrap();
                    exported |= text.lines().any(|line| line.starts_with(metric.as_str()));
                }
                exported
            })
            .await;
        }
    });
}

#[test]
fn an_import_can_be_run_again_and_names_malformed_lines() {
    with_fleet(|fleet, _| async {
        let sample = |name: &str| e2e::workspace().join("samples").join(name).display().to_string();
        let import = async |name: &str| {
            let args = ["import", &sample(name), "--tenant", "import-again", "--user", "ann", "--json"];
            let output = fleet.run(&args).await;
            let counts: Value = serde_json::from_slice(&output.stdout).unwrap();
            let all = counts["leftOut"] == 0;
            assert_eq!(output.status.code(), Some(if all { 0 } else { 3 }), "{output:?}");
            counts
        };
        let first = import("malformed.txt").await;
        assert_eq!((&first["written"], &first["replayed"]), (&7.into(), &0.into()));
        let lines: Vec<&Value> = first["refused"].as_array().unwrap().iter().map(|refused| &refused["line"]).collect();
        assert_eq!(lines, [2, 5, 9]);
        let again = import("malformed.txt").await;
        assert_eq!((&again["written"], &again["replayed"]), (&7.into(), &7.into()), "and says that it wrote nothing");
        assert_eq!(import("todos.csv").await["written"], 40);
        let ann = fleet.caller("import-again", "ann").await;
        let listed = ann.send(reqwest::Method::GET, "/v1/todos?pageSize=200", None).await;
        assert_eq!(listed.body["todos"].as_array().unwrap().len(), 47, "nothing twice");
        let completed = ann.send(reqwest::Method::GET, "/v1/todos?pageSize=200&status=COMPLETED", None).await;
        assert!(!completed.body["todos"].as_array().unwrap().is_empty());
    });
}

#[test]
fn events_and_lag_can_be_watched() {
    with_fleet(|fleet, _| async {
        let ann = fleet.caller("watch", "ann").await;
        let todo = ann.create(serde_json::json!({"title": "watched"})).await;
        let output =
            fleet.run(&["events", "tail", "--tenant", "watch", "--from-start", "--count", "1", "--json"]).await;
        let event: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&event["type"], &event["subject"]), (&"todo.created.v1".into(), &todo["id"]));
        testkit::until("each stage has been measured", || async {
            let lag = fleet.json(&["lag"]).await;
            lag["stages"].as_array().unwrap().iter().all(is_measured)
        })
        .await;
    });
}

/// The rights of a service's login beyond its tables, in every database: rows that name what is wrong.
const TOO_MUCH: &str = "
    with login as (select oid, rolname from pg_roles where rolcanlogin and not rolsuper),
    own as (select n.oid, nspname from pg_namespace n where nspname !~ '^pg_' and nspname <> 'information_schema')
    select rolname || ' has ' || may || ' on the database ' || datname from login, pg_database d,
        unnest(array['CREATE', 'TEMPORARY', 'CONNECT']) may
        where has_database_privilege(login.oid, d.oid, may) and rolname <> datname || '_owner' and datname <> 'template0'
        and not (may = 'CONNECT' and rolname in (datname || '_app', datname || '_relay'))
    union all
    select rolname || ' may create in ' || nspname from login, own
        where rolname !~ '_owner$' and has_schema_privilege(login.oid, own.oid, 'CREATE')
    union all
    select rolname || ' owns ' || what from login, (select relowner owner, relname::text what from pg_class
        union all select proowner, proname::text from pg_proc union all select nspowner, nspname::text from pg_namespace) it
        where owner = login.oid and rolname !~ '_owner$'
    union all
    select rolname || ' may make large objects by ' || lo from login,
        unnest(array['lo_creat(integer)', 'lo_create(oid)', 'lo_from_bytea(oid, bytea)']) lo
        where current_database() <> 'postgres' and has_function_privilege(login.oid, lo, 'EXECUTE')
    union all
    select o.rolname || ' logs in, bypasses or owns' from pg_roles o where o.rolname ~ '_operator$'
        and (o.rolcanlogin or o.rolbypassrls or o.rolsuper or exists (select from pg_class where relowner = o.oid))
    union all
    select m.rolname || ' has the rights of ' || o.rolname || ' without taking it on' from pg_roles o
        join pg_auth_members on roleid = o.oid join pg_roles m on m.oid = member where o.rolname ~ '_operator$' and m.rolinherit
    union all
    select proname || ' runs as its owner and looks for a caller''s temporary tables first' from pg_proc, own
        where prosecdef and pronamespace = own.oid
        and not exists (select from unnest(proconfig) setting where setting ~ '^search_path=.*, pg_temp$')";

#[test]
fn no_login_of_a_database_may_do_what_it_need_not() {
    with_fleet(|fleet, _| async {
        let url = fleet.login("postgres")["url"].as_str().unwrap().to_owned();
        let server = url.rsplit_once('/').unwrap().0;
        let mut all = PgConnection::connect(&url).await.unwrap();
        let databases: Vec<String> =
            sqlx::query_scalar("select datname from pg_database where datallowconn and not datistemplate")
                .fetch_all(&mut all)
                .await
                .unwrap();
        assert!(["todo", "operations"].iter().all(|name| databases.iter().any(|it| it == name)), "{databases:?}");
        for database in databases {
            let mut connection = PgConnection::connect(&format!("{server}/{database}")).await.unwrap();
            let wrong: Vec<String> = sqlx::query_scalar(TOO_MUCH).fetch_all(&mut connection).await.unwrap();
            assert_eq!(wrong, [""; 0], "in {database}");
            let Some(listed) = fleet::named(&database).and_then(|service| service.database) else { continue };
            let open: Vec<String> = sqlx::query_scalar(
                "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') \
                 and not relispartition and not relforcerowsecurity \
                 and has_table_privilege(current_database() || '_app', oid, 'select, insert, update, delete') order by relname",
            )
            .fetch_all(&mut connection)
            .await
            .unwrap();
            assert_eq!(
                open, listed.of_no_tenant,
                "in {database}: a tenant's table has a policy, and any other is listed"
            );
        }
    });
}

#[test]
fn what_a_stranger_has_written_steers_no_terminal() {
    with_fleet(|fleet, _| async {
        let title = "safe\u{202e}fdp.exe\u{200b}";
        let ann = fleet.caller("steer", "ann").await;
        let todo = ann.create(serde_json::json!({"title": "safe"})).await;
        // A todo from before such titles were refused; it is still read, changed and published.
        let login = fleet.login("postgres");
        let mut db = PgConnection::connect(login["url"].as_str().unwrap()).await.unwrap();
        let changed = sqlx::query("update todo set title = $1 where tenant = 'steer'").bind(title).execute(&mut db);
        assert_eq!(changed.await.unwrap().rows_affected(), 1);
        let path = format!("/v1/todos/{}", todo["id"].as_str().unwrap());
        let mut whole = ann.send(reqwest::Method::GET, &path, None).await.body;
        whole["notes"] = "n".into();
        let answer = ann.send(reqwest::Method::PATCH, &path, Some(whole)).await;
        assert_eq!((answer.status, &answer.body["title"]), (200, &title.into()));
        let worse = serde_json::json!({"title": format!("{title}!")});
        assert_eq!(ann.send(reqwest::Method::PATCH, &path, Some(worse)).await.status, 400);
        let tail = ["events", "tail", "--tenant", "steer", "--from-start", "--count", "2"];
        let text = String::from_utf8(fleet.run(&tail).await.stdout).unwrap();
        assert!(text.contains("safe\\u202efdp.exe\\u200b"), "{text}");
        let output = fleet.run(&[&tail[..], &["--json"]].concat()).await.stdout;
        assert!(output.is_ascii());
        let event: Value = serde_json::Deserializer::from_slice(&output).into_iter().last().unwrap().unwrap();
        assert_eq!(event["data"]["todo"]["title"], title, "as JSON it is what it was");
    });
}

#[test]
fn whoever_has_read_enough_ends_no_command_with_a_panic() {
    with_fleet(|fleet, _| async {
        for args in [
            &["status"][..],
            &["status", "--json"],
            &["status", "--watch"],
            &["consumers", "list"],
            &["lag"],
            &["outbox", "parked"],
            &["outbox", "journal"],
            &["dlq", "list"],
            &["dlq", "groups"],
            &["dlq", "stats"],
            &["dlq", "jobs"],
            &["dlq", "audit"],
            &["events", "tail", "--from-start"],
            &["token", "--tenant", "steer", "--user", "ann"],
        ] {
            let mut command = fleet.command(args);
            let mut running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            drop(running.stdout.take());
            let ended = tokio::time::timeout(testkit::PATIENCE, running.wait_with_output()).await;
            let output = ended.unwrap_or_else(|_| panic!("{args:?} does not end")).unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !text.contains("panicked"), "{args:?}: {} {text}", output.status);
        }
    });
}

#[test]
fn what_cannot_be_done_is_said_and_fails() {
    with_fleet(|fleet, _| async {
        for (args, part) in [
            (&["token", "--tenant", "Not A Slug", "--user", "ann"][..], "a tenant id is"),
            (&["import", "/does/not/exist", "--tenant", "a", "--user", "b"][..], "/does/not/exist"),
            (&["import", "/dev/zero", "--tenant", "a", "--user", "b"][..], "more than 256 MiB"),
            (&["import"][..], "Usage"),
        ] {
            let output = fleet.run(args).await;
            assert!(!output.status.success());
            assert!(String::from_utf8_lossy(&output.stderr).contains(part), "{output:?}");
        }
        let nowhere = std::env::temp_dir().join(testkit::unique("flotilla-nothing-"));
        let output = tokio::process::Command::new(e2e::flotilla())
            .arg("--home")
            .arg(&nowhere)
            .arg("status")
            .output()
            .await
            .unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("no fleet runs in"), "{output:?}");
        assert!(!output.status.success());
    });
}

#[test]
fn a_second_start_in_the_same_folder_and_a_taken_port_are_refused_with_the_remedy() {
    with_fleet(|fleet, _| async {
        let output = fleet.run(&["run", "--gateway-port", "0", "--no-demo"]).await;
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("flotilla down"), "{output:?}");

        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        let home = std::env::temp_dir().join(testkit::unique("flotilla-taken-"));
        let mut command = tokio::process::Command::new(e2e::flotilla());
        command.arg("--home").arg(&home).args(["run", "--gateway-port", &port]);
        let output = command.output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(&port) && said.contains("FLOTILLA_GATEWAY_PORT"), "{said}");
        std::fs::remove_dir_all(&home).unwrap();
    });
}

#[test]
fn what_stands_in_the_way_of_a_start_is_said_with_its_remedy() {
    with_fleet(|_, _| async {
        let run = async |home: &Path| {
            let mut command = tokio::process::Command::new(e2e::flotilla());
            command.arg("--home").arg(home).args(["run", "--any-ports", "--gateway-port", "0", "--no-demo"]);
            let output = command.output().await.unwrap();
            assert!(!output.status.success());
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        let file = std::env::temp_dir().join(testkit::unique("flotilla-file-"));
        std::fs::write(&file, b"").unwrap();
        let said = run(&file.join("home")).await;
        assert!(said.contains("cannot be used") && said.contains("FLOTILLA_HOME"), "{said}");
        std::fs::remove_file(&file).unwrap();

        // A backing service that dies at start: a cluster of a PostgreSQL version that never existed.
        let folder = std::env::temp_dir().join(testkit::unique("flotilla-broken-"));
        let home = devstack::StackDir::open(&folder).unwrap();
        let data = home.data_of_user("postgres").unwrap();
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("PG_VERSION"), b"99").unwrap();
        let said = run(&folder).await;
        let log = home.log("postgres").canonicalize().unwrap();
        assert!(said.contains("postgres died at start") && said.contains(&log.display().to_string()), "{said}");
        assert!(!home.path(devstack::stack::STATUS_FILE).exists(), "nothing is left running");
        home.wipe().unwrap();
    });
}
