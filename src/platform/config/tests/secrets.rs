use secrecy::ExposeSecret as _;

use super::*;

const SECRET: &str = "hunter2";

/// The passwords for RabbitMQ and PostgreSQL.
fn passwords(config: &Config) -> [String; 2] {
    let postgres = config.postgres.password.clone().unwrap_or_default();
    [config.rabbitmq.password.clone(), postgres].map(|it| it.current().expose_secret().to_owned())
}

#[test]
fn a_password_is_the_text_it_was_given_as() {
    let samples =
        ["0123", "true", "1.50", "[x]", "{a=1}", "\"quoted\"", " a b ", "p@ss:/#%$\u{e9}"];
    for password in samples {
        let dotenv = format!("RABBITMQ_PASSWORD='{password}'\nPOSTGRES_PASSWORD='{password}'\n");
        let [rabbitmq, postgres] =
            ["rabbitmq", "postgres"].map(|it| format!("[default.{it}]\npassword = '{password}'\n"));
        let directory =
            Directory::new(&[(".env", &dotenv), ("a.toml", &format!("{rabbitmq}{postgres}"))]);
        let mut by_flag = environment(&[]);
        for path in ["rabbitmq.password", "postgres.password"] {
            by_flag.flags.set.push((path.to_owned(), password.to_owned()));
        }
        for sources in [
            environment(&[("RABBITMQ_PASSWORD", password), ("POSTGRES_PASSWORD", password)]),
            directory.sources(&[]),
            environment(&[("PIPELINE_CONFIG", &directory.file("a.toml"))]),
            by_flag,
        ] {
            assert_eq!(passwords(&loaded(&sources)), [password; 2]);
        }
    }
    let unquoted = [
        (".env", "RABBITMQ_PASSWORD=0123\n"),
        ("pipeline.toml", "[default.postgres]\npassword = 12"),
    ];
    let config = loaded(&Directory::new(&unquoted).sources(&[]));
    assert_eq!(passwords(&config), ["0123", "12"]);
}

#[test]
fn a_password_file_loses_one_newline_at_its_end() {
    for (text, password) in
        [("p", "p"), ("p\n", "p"), ("p\r\n", "p"), (" p \n", " p "), ("12345\n", "12345")]
    {
        let directory = Directory::new(&[("secret", text)]);
        let file = ("RABBITMQ_PASSWORD_FILE", "secret");
        let config = loaded(&directory.sources(&[file, ("POSTGRES_PASSWORD_FILE", "secret")]));
        assert_eq!(passwords(&config), [password; 2]);
        let source = source(&config, "postgres.password");
        assert_eq!(source, "environment variable POSTGRES_PASSWORD_FILE");
    }
}

/// A line break that a file or a shell left at the end, for example.
#[test]
fn a_password_that_cannot_be_one_is_refused_and_not_shown() {
    let directory = Directory::new(&[
        ("lines", "hunter2\n\n"),
        ("two", "hunter2\nhunter2\n"),
        ("marked", "\u{feff}hunter2"),
        ("quoted", "\"hunter2 \""),
        ("empty", "\n"),
        ("large", &"x".repeat(65_537)),
    ]);
    let (at_the_end, anywhere) = ("ends with a control character", "holds a control character");
    for (name, value, wrong) in [
        ("RABBITMQ_PASSWORD", "hunter2\n", at_the_end),
        ("RABBITMQ_PASSWORD", "hunter2\r\n", at_the_end),
        ("RABBITMQ_PASSWORD", "hun\u{7f}ter2", anywhere),
        ("POSTGRES_PASSWORD", "hunter2\n", at_the_end),
        ("POSTGRES_PASSWORD", "hunter2\u{0}", anywhere),
        ("POSTGRES_PASSWORD", "\u{85}hunter2", anywhere),
        ("POSTGRES_PASSWORD_FILE", "lines", at_the_end),
        ("RABBITMQ_PASSWORD_FILE", "two", anywhere),
        ("RABBITMQ_PASSWORD_FILE", "marked", "byte order mark"),
        ("POSTGRES_PASSWORD_FILE", "missing", "cannot be read"),
        ("POSTGRES_PASSWORD_FILE", "empty", "is empty"),
        ("POSTGRES_PASSWORD_FILE", "large", "too large"),
        ("POSTGRES_PASSWORD_FILE", ".", "cannot be read"),
        ("RABBITMQ_URL", "amqp://u:hunter2%0A@h", at_the_end),
        ("DATABASE_URL", "postgres://u:hunter2%0a@h/d", at_the_end),
        ("RABBITMQ_MANAGEMENT_URL", "http://u:hunter2%0A@h", at_the_end),
        ("RABBITMQ_MANAGEMENT_URL", "http://u%00:hunter2@h", anywhere),
    ] {
        let problem = only(refused(&directory.sources(&[(name, value)])));
        assert!(problem.wrong.contains(wrong), "{name}: {problem}");
        assert_eq!(problem.set_by, format!("environment variable {name}"));
        assert!(wrong != at_the_end || problem.help.contains("echo"), "{problem}");
        assert!(!format!("{problem} {problem:?}").contains(SECRET), "{name}");
    }
    // A name that came from the same Secret.
    assert!(problem(&[("RABBITMQ_USER", "votes\n")]).help.contains("echo"));
    let quoted = loaded(&directory.sources(&[("POSTGRES_PASSWORD_FILE", "quoted")]));
    assert_eq!(passwords(&quoted)[1], "\"hunter2 \"");
}

#[test]
fn a_password_file_is_read_again_for_each_connection_and_the_last_good_one_stays() {
    let directory = Directory::new(&[("secret", "first\n")]);
    let file = ("RABBITMQ_PASSWORD_FILE", "secret");
    let config = loaded(&directory.sources(&[
        file,
        ("POSTGRES_PASSWORD_FILE", "secret"),
        ("RABBITMQ_MANAGEMENT_URL", "http://mq:15672"),
    ]));
    let management = config.rabbitmq.management_url.clone().expect("set").password;
    let all = || {
        let [rabbitmq, postgres] = passwords(&config);
        [rabbitmq, postgres, management.current().expose_secret().to_owned()]
    };
    let write = |text: &str| directory.write("secret", text);
    assert_eq!(all(), ["first"; 3]);
    write("second\n");
    assert_eq!(all(), ["second"; 3]);
    // Half written, or wrong.
    for unusable in ["", "\n", "two\nlines\n", "with a NUL\0"] {
        write(unusable);
        assert_eq!(all(), ["second"; 3], "{unusable:?}");
    }
    std::fs::remove_file(directory.file("secret")).expect("removed");
    assert_eq!(all(), ["second"; 3]);
    write("third");
    assert_eq!(all(), ["third"; 3]);
}

#[test]
fn a_password_and_a_password_file_in_one_layer_are_refused() {
    let directory = Directory::new(&[("secret", "from file")]);
    for name in ["RABBITMQ_PASSWORD", "POSTGRES_PASSWORD"] {
        let file = format!("{name}_FILE");
        let twice = only(refused(&directory.sources(&[(name, SECRET), (&file, "secret")])));
        assert!(twice.set_by.contains(name) && twice.set_by.contains(&file), "{twice}");
        assert!(!format!("{twice} {twice:?}").contains(SECRET));
    }
}

#[test]
fn of_a_password_and_a_password_file_in_two_layers_the_higher_wins() {
    let file_below = "[default.rabbitmq]\npassword_file = 'secret'";
    let directory = Directory::new(&[("secret", "from file"), ("pipeline.toml", file_below)]);
    let config = loaded(&directory.sources(&[]));
    assert_eq!(passwords(&config)[0], "from file");
    let config = loaded(&directory.sources(&[("RABBITMQ_PASSWORD", "above")]));
    assert_eq!(passwords(&config)[0], "above");

    let directory = Directory::new(&[("secret", "from file"), (".env", "RABBITMQ_PASSWORD=below")]);
    let config = loaded(&directory.sources(&[("RABBITMQ_PASSWORD_FILE", "secret")]));
    assert_eq!(passwords(&config)[0], "from file");
}

#[test]
fn nothing_shows_a_password() {
    let directory = Directory::new(&[("secret", SECRET)]);
    let sets = [
        vec![("RABBITMQ_PASSWORD", SECRET), ("POSTGRES_PASSWORD", SECRET)],
        vec![("RABBITMQ_PASSWORD_FILE", "secret"), ("POSTGRES_PASSWORD_FILE", "secret")],
        vec![
            ("RABBITMQ_URL", "amqp://u:hunter2@h"),
            ("DATABASE_URL", "postgres://u:hunter2@h/d"),
            ("RABBITMQ_MANAGEMENT_URL", "http://u:hunter2@h"),
        ],
    ];
    for variables in sets {
        let config = loaded(&directory.sources(&variables));
        assert_eq!(passwords(&config), [SECRET; 2]);
        let shown = format!("{config:?} {config:#?} {:?}", config.redacted());
        assert!(!shown.contains(SECRET), "{shown}");
        assert_eq!(setting(&config, "rabbitmq.password").value, "***");
        assert_eq!(setting(&config, "postgres.password").value, "***");

        let mut with_problems = variables.clone();
        with_problems.push(("BATCH_SIZE", "0"));
        let errors = Config::load(&directory.sources(&with_problems)).expect_err("0 is refused");
        assert!(!format!("{errors} {errors:?}").contains(SECRET));
    }
    assert_eq!(setting(&load(&[]), "postgres.password").value, "(not set)");
}

#[test]
fn refused_secrets_are_not_shown() {
    for (name, value) in [
        ("DATABASE_URL", "postgres://u:hunter2@h/d?a=1"),
        ("RABBITMQ_MANAGEMENT_URL", "ftp://u:hunter2@h"),
        ("POSTGRES_HOST", "postgres://u:hunter2@h/d"),
    ] {
        let problem = problem(&[(name, value)]);
        assert!(!format!("{problem} {problem:?}").contains(SECRET), "{value}");
    }
    let array = "[default.rabbitmq]\npassword = ['hunter2']";
    let directory = Directory::new(&[("pipeline.toml", array)]);
    let problems = refused(&directory.sources(&[]));
    assert!(!format!("{problems:?}").contains(SECRET));
}

#[test]
fn passwords_on_the_command_line_are_warned_of_and_not_shown() {
    let warnings = |path: &str, text: &str| {
        let set = vec![(path.to_owned(), text.to_owned())];
        exposed_passwords(&Overrides { set, ..Overrides::default() })
    };
    for (path, text, variable) in [
        ("rabbitmq.password", SECRET, "RABBITMQ_PASSWORD_FILE"),
        ("rabbitmq.url", "amqp://u:hunter2@h", "RABBITMQ_PASSWORD_FILE"),
        ("rabbitmq.management_url", "http://u:hunter2@h", "RABBITMQ_PASSWORD_FILE"),
        ("postgres.url", "postgres://u:hunter2@h/d", "POSTGRES_PASSWORD_FILE"),
    ] {
        let warned = warnings(path, text);
        assert_eq!(warned.len(), 1, "{path}");
        assert!(warned[0].contains(path) && warned[0].contains(variable), "{warned:?}");
        assert!(!warned[0].contains(SECRET), "{warned:?}");
    }
    for (path, text) in [
        ("rabbitmq.url", "amqp://h"),
        ("rabbitmq.password", ""),
        ("rabbitmq.password_file", "/run/secrets/p"),
        ("batch.size", "5"),
        ("no.such", SECRET),
    ] {
        assert_eq!(warnings(path, text), Vec::<String>::new(), "{path}");
    }
}
