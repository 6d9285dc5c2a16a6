//! Addresses given as one URL, taken apart into the settings they stand for.
//!
//! No message here repeats any part of a URL that could be a badly written password.

use figment::Figment;
use percent_encoding::percent_decode_str;
use url::Url;

use super::keys::{self, Key};
use super::layers;
use super::password::Password;
use super::problems::{Problem, Refusal};
use super::rabbitmq::ManagementUrl;
use super::values::{ONE_HOST, plain, truth};

/// The settings a URL gives, as the text each of them would have been given alone. What a URL
/// leaves out is empty here, and comes from the separate setting.
pub(super) type Parts = Vec<(&'static Key, String)>;

const ENCODE: &str = "write every special character of the user name and the password as % and its code: \
     @ is %40, / is %2F, : is %3A, # is %23, ? is %3F, % is %25";

/// `amqp://user:password@host:5672/vhost`, or `amqps` for TLS (port 5671).
///
/// The virtual host is percent-decoded: `/%2f` and `//` are `/`. Without one, `amqp://h` and
/// `amqp://h/` alike leave it to `rabbitmq.vhost`, which is `/` unless set. By RabbitMQ's URI
/// specification the second is the virtual host with an empty name, which does not occur.
pub(super) fn amqp(text: &str) -> Result<Parts, Refusal> {
    let url = parse(text, &["amqp", "amqps"], "amqp://user:password@host:5672/vhost")?;
    if path(&url) != "/" && path(&url).contains('/') {
        let help = "write a / inside the virtual host's name as %2F";
        return Err(Refusal::new("has more than one path segment", help));
    }
    if url.query().is_some() {
        let help = "remove them; the heartbeat and the TLS files have settings of their own";
        return Err(Refusal::new("has parameters after a ?", help));
    }
    let tls = url.scheme() == "amqps";
    let names = ["user", "password", "host", "port", "vhost"];
    let mut parts = parts(&url, "rabbitmq", names, if tls { 5671 } else { 5672 })?;
    parts.push((&keys::RABBITMQ_TLS, tls.to_string()));
    Ok(parts)
}

/// `postgres://user:password@host:5432/database`, with any of the parameters `sslmode`,
/// `sslrootcert`, `sslcert` and `sslkey`. The host may be the percent-encoded directory of a
/// socket.
pub(super) fn postgres(text: &str) -> Result<Parts, Refusal> {
    let shape = "postgres://user:password@host:5432/database";
    let url = parse(text, &["postgres", "postgresql"], shape)?;
    if path(&url).contains('/') {
        let help = "write the database's name after the host, a / in it as %2F";
        return Err(Refusal::new("has more than one path segment", help));
    }
    let names = ["user", "password", "host", "port", "database"];
    let mut parts = parts(&url, "postgres", names, 5432)?;
    for (name, value) in url.query_pairs() {
        if !["sslmode", "sslrootcert", "sslcert", "sslkey"].contains(&&*name) {
            return Err(unknown_parameter(&name));
        }
        parts.push((setting("postgres", &name), value.into_owned()));
    }
    Ok(parts)
}

/// `http://host:15672` or `https`, perhaps with a login and a path prefix.
pub(super) fn management(text: &str) -> Result<ManagementUrl, Refusal> {
    let shape = "http://host:15672";
    let mut url = parse(text, &["http", "https"], shape)?;
    if url.query().is_some() {
        return Err(Refusal::new("has parameters after a ?", format!("write {shape}")));
    }
    let user = plain(&decode(url.username())?)?;
    let password = Password::given(&decode(url.password().unwrap_or_default())?)?;
    let cannot = |()| Refusal::new("has no host", format!("write {shape}"));
    url.set_username("").map_err(cannot)?;
    url.set_password(None).map_err(cannot)?;
    Ok(ManagementUrl { url, user, password })
}

/// `rabbitmq.tls` is set to the opposite of what a URL's scheme says. Letting either win silently
/// could send a password in clear. `settings` are without the parts of URLs.
pub(super) fn contradicted_scheme(settings: &Figment) -> Option<Problem> {
    let (key, url_key) = (&keys::RABBITMQ_TLS, &keys::RABBITMQ_URL);
    let alone = layers::find(settings, key).filter(|alone| !alone.shipped)?;
    let url = layers::find(settings, url_key)?;
    let says = amqp(&url.text).ok()?.contains(&(key, true.to_string()));
    if truth(&alone.text) == Ok(says) {
        return None;
    }
    let scheme = if says { "amqps" } else { "amqp" };
    let wrong = format!("contradicts the scheme {scheme} of {} ({})", url_key.path, url.set_by);
    let help = format!("remove {}, or write the scheme that is meant", key.variable);
    Some(Problem::refused(key, &alone, Refusal::new(wrong, help)))
}

fn parse(text: &str, schemes: &[&str], shape: &str) -> Result<Url, Refusal> {
    plain(text)?;
    // The parser drops line breaks and tabs silently; a password with one would be another.
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Refusal::new("has white space or a control character in it", ENCODE));
    }
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    if !schemes.contains(&scheme.to_ascii_lowercase().as_str()) {
        let wrong = format!("does not begin with {}://", schemes.join(":// or "));
        return Err(Refusal::new(wrong, format!("write {shape}")));
    }
    // In front of the first /, behind the last @: no part of a login.
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.rsplit('@').next().is_some_and(|hosts| hosts.contains(',')) {
        return Err(Refusal::new("names several hosts", ONE_HOST));
    }
    let url = Url::parse(text).map_err(|error| {
        Refusal::new(format!("is not a URL ({error})"), format!("write {shape}, and {ENCODE}"))
    })?;
    // A /, ? or # in a password ends the host early; what follows holds the real @.
    let late_at = url.path().contains('@') || url.query().is_some_and(|query| query.contains('@'));
    if url.fragment().is_some() || late_at {
        return Err(Refusal::new("has an @ or a # after the host", ENCODE));
    }
    Ok(url)
}

/// User, password, host, port and path, as the settings with these names.
fn parts(url: &Url, section: &str, names: [&str; 5], standard_port: u16) -> Result<Parts, Refusal> {
    let host = decode(url.host_str().unwrap_or_default())?;
    // A URL that names a host names its port too: the port of another host's setting never applies.
    let port = url.port().or_else(|| (!host.is_empty()).then_some(standard_port));
    let texts = [
        decode(url.username())?,
        decode(url.password().unwrap_or_default())?,
        host,
        port.map_or(String::new(), |port| port.to_string()),
        decode(path(url))?,
    ];
    Ok(names.map(|name| setting(section, name)).into_iter().zip(texts).collect())
}

fn setting(section: &str, name: &str) -> &'static Key {
    keys::by_path(&format!("{section}.{name}")).expect("a part of a URL is a setting")
}

/// The path without the slash that divides it from the host.
fn path(url: &Url) -> &str {
    url.path().strip_prefix('/').unwrap_or_default()
}

fn decode(text: &str) -> Result<String, Refusal> {
    percent_decode_str(text)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_| Refusal::new("holds a % code that is not UTF-8", ENCODE))
}

fn unknown_parameter(name: &str) -> Refusal {
    let known = "sslmode, sslrootcert, sslcert and sslkey are known; remove the others";
    let harmless = name.len() <= 32 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let named = if harmless { format!(": {name}") } else { String::new() };
    Refusal::new(format!("has an unknown parameter{named}"), known)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts by their paths, without the section.
    fn text(parts: Result<Parts, Refusal>) -> String {
        let parts = parts.expect("the URL is right").into_iter();
        let parts = parts.filter(|(_, value)| !value.is_empty());
        let parts = parts.map(|(key, value)| format!("{}={value}", key.name()));
        parts.collect::<Vec<_>>().join("|")
    }

    fn wrong<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
        result.expect_err("the URL must be refused").wrong
    }

    #[test]
    fn a_url_gives_the_parts_that_it_names() {
        for (url, parts) in [
            (
                "amqps://vo%40ter:p%2Fw%3A1@mq.example.org:5679/vote%20s",
                "user=vo@ter|password=p/w:1|host=mq.example.org|port=5679|vhost=vote s|tls=true",
            ),
            ("amqp://h", "host=h|port=5672|tls=false"),
            ("amqp://h/", "host=h|port=5672|tls=false"),
            ("AMQP://h", "host=h|port=5672|tls=false"),
            ("amqp://:@h", "host=h|port=5672|tls=false"),
            ("amqps://h", "host=h|port=5671|tls=true"),
            ("amqp://[::1]", "host=[::1]|port=5672|tls=false"),
            ("amqp:///votes", "vhost=votes|tls=false"),
            ("amqp:///%2f", "vhost=/|tls=false"),
            ("amqp:////", "vhost=/|tls=false"),
            ("amqp:///a%2Fb", "vhost=a/b|tls=false"),
            ("amqp://u:p,w@h", "user=u|password=p,w|host=h|port=5672|tls=false"),
        ] {
            assert_eq!(text(amqp(url)), parts, "{url}");
        }
        assert!(wrong(amqp("amqp://h/a/b")).contains("segment"));
        for (url, parts) in [
            (
                "postgresql://u:p%23w@db/votes?sslmode=verify-full&sslrootcert=%2Fca.pem\
                 &sslcert=/c.pem&sslkey=/k.pem",
                "user=u|password=p#w|host=db|port=5432|database=votes|sslmode=verify-full|\
                 sslrootcert=/ca.pem|sslcert=/c.pem|sslkey=/k.pem",
            ),
            ("postgres://%2Fvar%2Frun/votes", "host=/var/run|port=5432|database=votes"),
            ("postgres:///votes", "database=votes"),
        ] {
            assert_eq!(text(postgres(url)), parts, "{url}");
        }
        let refused = postgres("postgres://h/d?sslmode=require&connect_timeout=1");
        assert_eq!(wrong(refused), "has an unknown parameter: connect_timeout");
        assert!(wrong(amqp("amqp://h/?heartbeat=5")).contains("parameters"));
    }

    #[test]
    fn a_list_of_hosts_is_refused() {
        for url in ["amqp://u:p@a,b/v", "amqp://u:p@a:5672,b:5672"] {
            assert!(wrong(amqp(url)).contains("several hosts"), "{url}");
        }
    }

    #[test]
    fn a_bad_url_is_refused_without_showing_any_of_it() {
        for url in [
            "hunter2",
            "http://u:hunter2@h",
            "amqp:u:hunter2@h",
            "amqp://u:hunter2@h:99999/",
            "amqp://u:hun/ter2@h/v",
            "amqp://u:1/hunter2@h/v",
            "amqp://u:1/hunter2@h",
            "amqp://u:1?sslmode=hunter2@h",
            "amqp://u:1?hunter2@h/v",
            "amqp://u:1#hunter2@h/v",
            "amqp://u:hun ter2@h/v",
            "amqp://u:%ff%fehunter2@h/v",
            "amqp://u:hunter2@h/a/b",
            "amqp://u:hunter2@h?a=1",
            "amqp://u:p@h?a.b.hunter2=1",
        ] {
            let postgres_url = url.replacen("amqp", "postgres", 1);
            for refused in [amqp(url), postgres(&postgres_url)] {
                let refusal = refused.expect_err(url);
                assert!(!format!("{refusal:?}").contains("ter2"), "{url}: {refusal:?}");
            }
        }
    }
}
