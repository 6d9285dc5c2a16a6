use super::*;

const FILE: &str = "[default.batch]\nsize = 30\n[throughput.batch]\nsize = 31\n";

#[test]
fn each_layer_wins_over_those_below() {
    let directory = Directory::new(&[("other.toml", FILE)]);
    let mut sources = directory.sources(&[]);
    let mut steps = Vec::new();
    let mut step = |sources: &Sources| {
        let config = loaded(sources);
        steps.push((config.batch.size, source(&config, "batch.size")));
    };

    step(&sources);
    sources.flags.profile = Some("throughput".to_owned());
    step(&sources);
    directory.write("pipeline.toml", "[default.batch]\nsize = 20");
    step(&sources);
    sources.flags.config = Some("other.toml".into());
    step(&sources);
    directory.write(".env", "BATCH_SIZE=40");
    step(&sources);
    sources.environment.insert("BATCH_SIZE".to_owned(), "50".into());
    step(&sources);
    sources.flags.set.push(("batch.size".to_owned(), "60".to_owned()));
    step(&sources);

    let expected = [
        (100, "shipped defaults".to_owned()),
        (2000, "shipped profile throughput".to_owned()),
        (20, format!("{}: default.batch.size", directory.file("pipeline.toml"))),
        (31, format!("{}: throughput.batch.size", directory.file("other.toml"))),
        (40, ".env: BATCH_SIZE".to_owned()),
        (50, "environment variable BATCH_SIZE".to_owned()),
        (60, "--set batch.size".to_owned()),
    ];
    assert_eq!(steps, expected);
}

#[test]
fn the_file_and_the_profile_may_be_named_in_every_place() {
    let directory = Directory::new(&[
        ("a.toml", "[default.batch]\nsize = 1"),
        ("b.toml", "[default.batch]\nsize = 2"),
        ("c.toml", "[default.batch]\nsize = 3"),
        (".env", "PIPELINE_CONFIG=a.toml\nPIPELINE_PROFILE=throughput"),
    ]);
    let selected = |sources: &Sources| {
        let config = loaded(sources);
        (config.batch.size, config.profile)
    };
    assert_eq!(selected(&directory.sources(&[])), (1, "throughput"));

    let mut sources = directory.sources(&[
        ("PIPELINE_CONFIG", &directory.file("b.toml")),
        ("PIPELINE_PROFILE", "default"),
    ]);
    assert_eq!(selected(&sources), (2, "default"));

    sources.flags.config = Some("c.toml".into());
    sources.flags.profile = Some("throughput".to_owned());
    assert_eq!(selected(&sources), (3, "throughput"));
}

#[test]
fn a_file_that_was_named_must_be_there_and_be_right() {
    let directory = Directory::new(&[("broken.toml", "[default.batch]\nsize = = 3")]);
    let mut sources = directory.sources(&[]);
    sources.flags.config = Some("missing.toml".into());
    let missing = only(refused(&sources));
    assert_eq!(missing.set_by, "--config");
    assert!(missing.value.is_some_and(|value| value.contains("missing.toml")));

    let missing = problem(&[("PIPELINE_CONFIG", "/nowhere/pipeline.toml")]);
    assert_eq!(missing.set_by, "environment variable PIPELINE_CONFIG");

    sources.flags.config = Some("broken.toml".into());
    let broken = only(refused(&sources));
    assert_eq!(broken.set_by, directory.file("broken.toml"));
    assert!(broken.wrong.contains("line 2"), "{}", broken.wrong);
}

#[test]
fn an_empty_variable_is_not_set_and_hides_nothing() {
    let directory = Directory::new(&[(".env", "BATCH_SIZE=7\n")]);
    let empty = [("BATCH_SIZE", ""), ("RABBITMQ_PASSWORD", ""), ("PIPELINE_PROFILE", "")];
    assert_eq!(loaded(&directory.sources(&empty)).batch.size, 7);
}

#[test]
fn a_copy_of_the_shipped_file_sets_nothing() {
    let directory = Directory::new(&[("pipeline.toml", document::SHIPPED)]);
    let config = loaded(&directory.sources(&[("BATCH_SIZE", "500")]));
    assert_eq!(config.rabbitmq.prefetch, 500);
    assert_eq!(source(&config, "batch.timeout_seconds"), "shipped defaults");
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf8_is_a_problem() {
    use std::os::unix::ffi::OsStringExt as _;
    let mut sources = environment(&[]);
    let value = std::ffi::OsString::from_vec(vec![0xff]);
    sources.environment.insert("RABBITMQ_PASSWORD".to_owned(), value);
    let problem = only(refused(&sources));
    assert_eq!(problem.set_by, "environment variable RABBITMQ_PASSWORD");
    assert_eq!(problem.wrong, "is not UTF-8");
}

#[test]
fn all_problems_are_listed_at_once_each_with_its_source() {
    let directory = Directory::new(&[
        ("pipeline.toml", "[default.retry]\nmax_attempts = -1\n[default.bach]\nsize = 1\n"),
        (".env", "LOG_LEVEL=loud\n"),
    ]);
    let mut sources = directory.sources(&[
        ("BATCH_SIZE", "many"),
        ("RABBITMQ_PORT", "99999"),
        ("POSTGRES_PASSWORD_FILE", "/nowhere/password"),
        ("DATABASE_URL", "mysql://u:hunter2@h/d"),
    ]);
    sources.flags.profile = Some("througput".to_owned());
    for (path, value) in [("shutdown.timeout_seconds", "NaN"), ("batch.sizes", "1")] {
        sources.flags.set.push((path.to_owned(), value.to_owned()));
    }
    let errors = Config::load(&sources).expect_err("the configuration must be refused");
    let file = directory.file("pipeline.toml");
    let problems = errors.problems().iter();
    let places: Vec<_> = problems.map(|it| (it.key.as_str(), it.set_by.clone())).collect();
    let expected = [
        ("batch.sizes", "--set batch.sizes".to_owned()),
        ("--profile", "--profile".to_owned()),
        ("bach", format!("{file}: default.bach")),
        ("rabbitmq.port", "environment variable RABBITMQ_PORT".to_owned()),
        ("postgres.url", "environment variable DATABASE_URL".to_owned()),
        ("postgres.password_file", "environment variable POSTGRES_PASSWORD_FILE".to_owned()),
        ("batch.size", "environment variable BATCH_SIZE".to_owned()),
        ("retry.max_attempts", format!("{file}: default.retry.max_attempts")),
        ("monitoring.log_level", ".env: LOG_LEVEL".to_owned()),
        ("shutdown.timeout_seconds", "--set shutdown.timeout_seconds".to_owned()),
    ];
    assert_eq!(places, expected);
    let text = errors.to_string();
    assert!(text.starts_with("the configuration has 10 problems:"), "{text}");
    assert!(expected.iter().all(|(key, place)| text.contains(key) && text.contains(place)));
    for help in [
        "did you mean batch.size?",
        "did you mean throughput? The profiles are: default, throughput",
    ] {
        assert!(text.contains(help), "{text}");
    }
    assert!(!text.contains("hunter2"));
}
