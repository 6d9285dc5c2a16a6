//! Addresses given as one URL, taken apart into the settings they stand for.
//!
//! No message here repeats any part of a URL that could be a badly written password.

use percent_encoding::percent_decode_str;
use url::Url;

use super::keys::{self, Key};
use super::password::Password;
use super::problems::Refusal;
use super::rabbitmq::ManagementUrl;
use super::values::plain;

/// The settings a URL gives, as the text each of them would have been given alone. What a URL
/// leaves out is left out here too and comes from the separate setting.
pub(super) type Parts = Vec<(&'static Key, String)>;

const ENCODE: &str = "write every special character of the user name and the password as % and its code: \
     @ is %40, / is %2F, : is %3A, # is %23, ? is %3F, % is %25";

/// `amqp://user:password@host:5672/vhost`, or `amqps` for TLS (port 5671).
///
/// The virtual host is percent-decoded: `/%2f` and `//` are `/`. Without one, `amqp://h` and
/// `amqp://h/` alike leave it to `rabbitmq.vhost`, which is `/` unless set. By the letter of
/// RabbitMQ's URI specification the second is the virtual host with an empty name, which does
/// not occur.
pub(super) fn amqp(text: &str) -> Result<Parts, Refusal> {
    let url = parse(text, &["amqp", "amqps"], "amqp://user:password@host:5672/vhost")?;
    let tls = url.scheme() == "amqps";
    let mut parts = vec![(&keys::RABBITMQ_TLS, tls.to_string())];
    push_login(&mut parts, &url, &keys::RABBITMQ_USER, &keys::RABBITMQ_PASSWORD)?;
    let standard_port = if tls { 5671 } else { 5672 };
    push_host(&mut parts, &url, [&keys::RABBITMQ_HOST, &keys::RABBITMQ_PORT], standard_port)?;
    let vhost = path(&url);
    if vhost != "/" && vhost.contains('/') {
        return Err(Refusal::new(
            "has more than one path segment",
            "write a / inside the virtual host's name as %2F",
        ));
    }
    push(&mut parts, &keys::RABBITMQ_VHOST, decode(vhost)?);
    if url.query().is_some() {
        return Err(Refusal::new(
            "has parameters after a ?",
            "remove them; the heartbeat and the TLS files have settings of their own",
        ));
    }
    Ok(parts)
}

/// `postgres://user:password@host:5432/database`, with any of the parameters `sslmode`,
/// `sslrootcert`, `sslcert` and `sslkey`. The host may be the percent-encoded directory of a
/// socket.
pub(super) fn postgres(text: &str) -> Result<Parts, Refusal> {
    let shape = "postgres://user:password@host:5432/database";
    let url = parse(text, &["postgres", "postgresql"], shape)?;
    let mut parts = Vec::new();
    push_login(&mut parts, &url, &keys::POSTGRES_USER, &keys::POSTGRES_PASSWORD)?;
    push_host(&mut parts, &url, [&keys::POSTGRES_HOST, &keys::POSTGRES_PORT], 5432)?;
    if path(&url).contains('/') {
        return Err(Refusal::new(
            "has more than one path segment",
            "write the database's name after the host, a / in it as %2F",
        ));
    }
    push(&mut parts, &keys::POSTGRES_DB, decode(path(&url))?);
    for (name, value) in url.query_pairs() {
        let key = match name.as_ref() {
            "sslmode" => &keys::POSTGRES_SSLMODE,
            "sslrootcert" => &keys::POSTGRES_SSLROOTCERT,
            "sslcert" => &keys::POSTGRES_SSLCERT,
            "sslkey" => &keys::POSTGRES_SSLKEY,
            other => return Err(unknown_parameter(other)),
        };
        push(&mut parts, key, value.into_owned());
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
    let user = decode(url.username())?;
    plain(&user)?;
    let password = Password::given(decode(url.password().unwrap_or_default())?)?;
    let cannot = |()| Refusal::new("has no host", format!("write {shape}"));
    url.set_username("").map_err(cannot)?;
    url.set_password(None).map_err(cannot)?;
    Ok(ManagementUrl { url, user, password })
}

fn parse(text: &str, schemes: &[&str], shape: &str) -> Result<Url, Refusal> {
    plain(text)?;
    // The parser drops line breaks and tabs silently; a password with one would be another.
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Refusal::new("has white space or a control character in it", ENCODE));
    }
    let expected = || format!("write {shape}");
    let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    if !scheme.is_some_and(|scheme| schemes.contains(&scheme.as_str())) {
        let wrong = format!("does not begin with {}://", schemes.join(":// or "));
        return Err(Refusal::new(wrong, expected()));
    }
    // In front of the first /, behind the last @: no part of a login.
    let authority = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.rsplit('@').next().is_some_and(|hosts| hosts.contains(',')) {
        return Err(Refusal::new(
            "names several hosts",
            "give one host; lists are not supported yet",
        ));
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

fn push(parts: &mut Parts, key: &'static Key, value: String) {
    if !value.is_empty() {
        parts.push((key, value));
    }
}

fn push_login(
    parts: &mut Parts,
    url: &Url,
    user: &'static Key,
    password: &'static Key,
) -> Result<(), Refusal> {
    push(parts, user, decode(url.username())?);
    push(parts, password, decode(url.password().unwrap_or_default())?);
    Ok(())
}

/// A URL that names a host names its port too: the port of another host's setting never applies.
fn push_host(
    parts: &mut Parts,
    url: &Url,
    [host_key, port_key]: [&'static Key; 2],
    standard_port: u16,
) -> Result<(), Refusal> {
    let host = decode(url.host_str().unwrap_or_default())?;
    if !host.is_empty() || url.port().is_some() {
        push(parts, port_key, url.port().unwrap_or(standard_port).to_string());
    }
    push(parts, host_key, host);
    Ok(())
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
    if harmless {
        Refusal::new(format!("has an unknown parameter: {name}"), known)
    } else {
        Refusal::new("has an unknown parameter", known)
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    /// The parts by their paths, without the section.
    fn text(parts: Result<Parts, Refusal>) -> String {
        let parts = parts.expect("the URL is right");
        let parts = parts.iter().map(|(key, value)| format!("{}={value}", key.name()));
        parts.collect::<Vec<_>>().join("|")
    }

    fn wrong<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
        result.expect_err("the URL must be refused").wrong
    }

    #[test]
    fn an_amqp_url_gives_the_parts_that_it_names() {
        for (url, parts) in [
            (
                "amqps://vo%40ter:p%2Fw%3A1@mq.example.org:5679/vote%20s",
                "tls=true|user=vo@ter|password=p/w:1|port=5679|host=mq.example.org|vhost=vote s",
            ),
            ("amqp://h", "tls=false|port=5672|host=h"),
            ("amqp://h/", "tls=false|port=5672|host=h"),
            ("AMQP://h", "tls=false|port=5672|host=h"),
            ("amqp://:@h", "tls=false|port=5672|host=h"),
            ("amqps://h", "tls=true|port=5671|host=h"),
            ("amqp://[::1]", "tls=false|port=5672|host=[::1]"),
            ("amqp:///votes", "tls=false|vhost=votes"),
            ("amqp:///%2f", "tls=false|vhost=/"),
            ("amqp:////", "tls=false|vhost=/"),
            ("amqp:///a%2Fb", "tls=false|vhost=a/b"),
            ("amqp://u:p,w@h", "tls=false|user=u|password=p,w|port=5672|host=h"),
        ] {
            assert_eq!(text(amqp(url)), parts, "{url}");
        }
        assert!(wrong(amqp("amqp://h/a/b")).contains("segment"));
    }

    #[test]
    fn a_database_url_gives_the_parts_that_it_names() {
        for (url, parts) in [
            (
                "postgresql://u:p%23w@db/votes?sslmode=verify-full&sslrootcert=%2Fca.pem\
                 &sslcert=/c.pem&sslkey=/k.pem",
                "user=u|password=p#w|port=5432|host=db|database=votes|sslmode=verify-full|\
                 sslrootcert=/ca.pem|sslcert=/c.pem|sslkey=/k.pem",
            ),
            ("postgres://%2Fvar%2Frun/votes", "port=5432|host=/var/run|database=votes"),
            ("postgres:///votes", "database=votes"),
        ] {
            assert_eq!(text(postgres(url)), parts, "{url}");
        }
    }

    #[test]
    fn what_a_source_added_to_a_url_and_lists_of_hosts_are_refused() {
        for (url, named) in [
            (" amqp://h", "begins with a blank"),
            ("amqp://h\n", "ends with a blank or a line break"),
            ("\"amqp://h\"", "quotation marks"),
            ("amqp://u:p@a,b/v", "several hosts"),
            ("amqp://u:p@a:5672,b:5672", "several hosts"),
        ] {
            assert!(wrong(amqp(url)).contains(named), "{url}");
            assert!(wrong(postgres(&url.replace("amqp", "postgres"))).contains(named), "{url}");
            assert!(wrong(management(&url.replace("amqp", "http"))).contains(named), "{url}");
        }
    }

    #[test]
    fn an_unknown_parameter_is_named() {
        let refused = postgres("postgres://h/d?sslmode=require&connect_timeout=1");
        assert_eq!(wrong(refused), "has an unknown parameter: connect_timeout");
        assert!(wrong(amqp("amqp://h/?heartbeat=5")).contains("parameters"));
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

    #[test]
    fn a_management_url_is_parted_from_its_login() {
        let address = management("https://a%40:b@mq:15671/prefix").expect("the URL is right");
        assert_eq!(address.url.as_str(), "https://mq:15671/prefix");
        assert_eq!(address.user, "a@");
        assert_eq!(address.password.current().expose_secret(), "b");
        assert!(wrong(management("ftp://mq")).contains("http://"));
        assert!(wrong(management("http://mq/?a=1")).contains("parameters"));
    }
}
