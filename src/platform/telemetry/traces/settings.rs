//! OpenTelemetry's variables, where the SDK leaves them to us or ignores invalid values silently.

use std::time::Duration;

use strum::EnumString;

use super::TracesError;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString)]
pub(super) enum Protocol {
    #[strum(serialize = "grpc")]
    Grpc,
    #[strum(serialize = "http/protobuf")]
    HttpProtobuf,
}

#[derive(Debug)]
pub(super) struct Settings {
    pub(super) protocol: Protocol,
    /// Whether the endpoint is reached over TLS.
    pub(super) https: bool,
    /// For one request.
    pub(super) timeout: Duration,
    /// The SDK reads a service name itself.
    pub(super) has_service_name: bool,
}

impl Settings {
    /// `None`: traces are not asked for, or are switched off.
    pub(super) fn read(env: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, TracesError> {
        let of_traces = |name: &str| {
            let own = format!("OTEL_EXPORTER_OTLP_TRACES_{name}");
            let all = format!("OTEL_EXPORTER_OTLP_{name}");
            env(&own).map(|value| (own, value)).or_else(|| env(&all).map(|value| (all, value)))
        };
        let disabled = env("OTEL_SDK_DISABLED").is_some_and(|on| on.eq_ignore_ascii_case("true"));
        let wanted = match env("OTEL_TRACES_EXPORTER").as_deref() {
            _ if disabled => false,
            None => of_traces("ENDPOINT").is_some(),
            Some("otlp") => true,
            Some("none") => false,
            Some(other) => return Err(wrong("OTEL_TRACES_EXPORTER", other, "otlp or none")),
        };
        if !wanted {
            return Ok(None);
        }
        // Not repeated: a header may be a credential.
        for (name, value) in ["HEADERS", "ENDPOINT"].into_iter().filter_map(of_traces) {
            // The SDK trims each header itself, but not an address.
            let trim = |part| if name.ends_with("HEADERS") { str::trim(part) } else { part };
            if value.split(',').map(trim).any(|part| part.contains(char::is_control)) {
                return Err(TracesError(format!(
                    "{name} holds a control character or a line break; `echo` without -n puts one at \
                     the end, in a Kubernetes Secret for example"
                )));
            }
        }
        let protocol = match of_traces("PROTOCOL") {
            None => Protocol::HttpProtobuf,
            Some((name, value)) => {
                value.parse().map_err(|_| wrong(&name, &value, "grpc or http/protobuf"))?
            }
        };
        let https = match of_traces("ENDPOINT") {
            None => false,
            Some((name, endpoint)) => match url::Url::parse(&endpoint) {
                Ok(url) if url.has_host() && ["http", "https"].contains(&url.scheme()) => {
                    url.scheme() == "https"
                }
                // Not repeated: it may hold a password.
                _ => {
                    let wrong = format!("{name} is not an address such as http://collector:4318");
                    return Err(TracesError(wrong));
                }
            },
        };
        let timeout = match of_traces("TIMEOUT") {
            None => DEFAULT_TIMEOUT,
            Some((name, value)) => {
                let millis = value.parse::<u64>();
                let millis =
                    millis.map_err(|_| wrong(&name, &value, "a number of milliseconds"))?;
                Duration::from_millis(millis)
            }
        };
        if let Some(sampler) = env("OTEL_TRACES_SAMPLER") {
            if !SAMPLERS.contains(&sampler.as_str()) {
                return Err(wrong("OTEL_TRACES_SAMPLER", &sampler, &SAMPLERS.join(", ")));
            }
            let argument = env("OTEL_TRACES_SAMPLER_ARG").unwrap_or_else(|| "1.0".to_owned());
            let ratio = argument.parse::<f64>();
            if sampler.ends_with("ratio") && !ratio.is_ok_and(|r| (0.0..=1.0).contains(&r)) {
                return Err(wrong("OTEL_TRACES_SAMPLER_ARG", &argument, "a share from 0 to 1"));
            }
        }
        let attributes = env("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        let mut names = attributes.split(',').filter_map(|pair| pair.split_once('='));
        let named = names.any(|(name, _)| name.trim() == "service.name");
        Ok(Some(Self {
            protocol,
            https,
            timeout,
            has_service_name: named || env("OTEL_SERVICE_NAME").is_some(),
        }))
    }
}

fn wrong(name: &str, value: &str, allowed: &str) -> TracesError {
    TracesError(format!("{name} is {value:?}; it may be {allowed}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        let value = |name: &str| variables.iter().find(|(n, _)| *n == name);
        Settings::read(|name| value(name).map(|(_, value)| (*value).to_owned()))
            .map_err(|error| error.to_string())
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    #[test]
    fn off_until_traces_are_asked_for() {
        for (variables, on) in [
            (&[][..], false),
            (&[("OTEL_SERVICE_NAME", "votes")], false),
            (&[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")], false),
            (&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")], false),
            (&[("OTEL_TRACES_EXPORTER", "otlp")], true),
        ] {
            assert_eq!(read(variables).expect("valid").is_some(), on, "{variables:?}");
        }
    }

    #[test]
    fn a_variable_of_traces_wins_over_one_of_all_signals() {
        let variables = [
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector:4317"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ];
        for (count, protocol, https) in [
            (1, Protocol::HttpProtobuf, false),
            (3, Protocol::HttpProtobuf, true),
            (4, Protocol::Grpc, true),
        ] {
            let settings = read(&variables[..count]).expect("valid").expect("on");
            assert_eq!((settings.protocol, settings.https), (protocol, https));
        }
    }

    #[test]
    fn nonsense_is_named_with_its_variable() {
        for (name, value) in [
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
        ] {
            let error = read(&[ENDPOINT, (name, value)]).expect_err("refused");
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
        let endpoint = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        for secret in ["grpc://user:hush@collector:4317", "collector:4317/hush"] {
            let error = read(&[(endpoint, secret)]).expect_err("refused");
            assert!(error.contains(endpoint) && !error.contains("hush"), "{error}");
        }
        for broken in [
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer\nhush"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "authorization=hu\0sh"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://user:hush@collector:4318\n"),
        ] {
            let error = read(&[ENDPOINT, broken]).expect_err("refused");
            assert!(error.contains(broken.0) && error.contains("echo"), "{error}");
            assert!(!error.contains("sh\n") && !error.contains("hu\0"), "{error}");
        }
        let lines = ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,\nb=2\n");
        assert!(read(&[ENDPOINT, lines]).is_ok(), "the SDK trims them");
        let half = [ENDPOINT, ("OTEL_TRACES_SAMPLER", "traceidratio")];
        assert!(read(&half).is_ok(), "without an argument: all");
        let error = read(&[half[0], half[1], ("OTEL_TRACES_SAMPLER_ARG", "2")]);
        assert!(error.expect_err("refused").contains("OTEL_TRACES_SAMPLER_ARG"));
    }
}
