//! Addresses given as a URL, or as several, taken apart into the settings they stand for.
//!
//! No message here repeats any part of a URL that could be a badly written password.

use std::ops::Range;

use figment::Figment;
use percent_encoding::percent_decode_str;
use url::Url;

use super::hosts::MOST;
use super::keys::{self, Key};
use super::layers;
use super::password::Password;
use super::problems::{Problem, Refusal};
use super::rabbitmq::ManagementUrl;
use super::values::{plain, truth};

/// The settings a URL gives, as the text each of them would have been given alone. What a URL
/// leaves out is empty here, and comes from the separate setting.
pub(super) type Parts = Vec<(&'static Key, String)>;

const ENCODE: &str = "write every special character of the user name and the password as % and its code: \
     @ is %40, / is %2F, : is %3A, # is %23, ? is %3F, % is %25";

/// `amqp://user:password@host:5672/vhost`, or `amqps` for TLS (port 5671), for one host or more.
///
/// The virtual host is percent-decoded: `/%2f` and `//` are `/`. Without one, `amqp://h` and
/// `amqp://h/` alike leave it to `rabbitmq.vhost`, which is `/` unless set. By RabbitMQ's URI
/// specification the second is the virtual host with an empty name, which does not occur.
pub(super) fn amqp(text: &str) -> Result<Parts, Refusal> {
    of_all_hosts(text, &["amqp", "amqps"], amqp_of_one_host)
}

fn amqp_of_one_host(text: &str) -> Result<Parts, Refusal> {
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
/// `sslrootcert`, `sslcert` and `sslkey`. There may be several hosts; a single one may be the
/// percent-encoded directory of a socket.
pub(super) fn postgres(text: &str) -> Result<Parts, Refusal> {
    of_all_hosts(text, &["postgres", "postgresql"], postgres_of_one_host)
}

fn postgres_of_one_host(text: &str) -> Result<Parts, Refusal> {
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

/// The parts of a URL for each host, which may differ in host and port alone. Several hosts make one
/// list, each with its port.
fn of_all_hosts(
    text: &str,
    schemes: &[&str],
    of_one_host: fn(&str) -> Result<Parts, Refusal>,
) -> Result<Parts, Refusal> {
    let urls = one_for_each_host(text, schemes);
    if let [url] = &urls[..] {
        return of_one_host(url);
    }
    if urls.len() > MOST {
        let wrong = format!("names {} hosts", urls.len());
        return Err(Refusal::new(wrong, format!("name at most {MOST}")));
    }
    let (mut hosts, mut all) = (Vec::new(), Parts::new());
    for (number, url) in (1..).zip(&urls) {
        let refused = |refusal: Refusal| refusal.of_address(number);
        let mut parts = of_one_host(url).map_err(refused)?;
        let [host, port] = ["host", "port"].map(|name| {
            let part = parts.iter_mut().find(|(key, _)| key.name() == name);
            part.map(|(_, text)| std::mem::take(text)).unwrap_or_default()
        });
        if host.is_empty() {
            return Err(refused(Refusal::new("has no host", "write it, or remove the comma")));
        }
        if all.is_empty() {
            all = parts;
        } else if let Some((key, _)) =
            all.iter().chain(&parts).find(|part| !(all.contains(part) && parts.contains(part)))
        {
            let help = "give all of them the same user, password and so on: they are one cluster";
            let wrong = format!("has another {} than the first", key.name());
            return Err(refused(Refusal::new(wrong, help)));
        }
        hosts.push((host, port));
    }
    for (key, text) in &mut all {
        match key.name() {
            "host" => {
                let list = hosts.iter().map(|(host, port)| format!("{host}:{port}"));
                *text = list.collect::<Vec<_>>().join(",");
            }
            "port" => text.clone_from(&hosts[0].1),
            _ => {}
        }
    }
    Ok(all)
}

/// One URL for each host: of URLs with commas between them, and of hosts within each.
fn one_for_each_host(text: &str, schemes: &[&str]) -> Vec<String> {
    let is_url = |text: &str| {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        scheme.is_some_and(|scheme| schemes.contains(&scheme.as_str()))
    };
    let mut urls: Vec<String> = Vec::new();
    for part in text.split(',') {
        match urls.last_mut() {
            // The comma is within a URL.
            Some(url) if !is_url(part) => *url += &format!(",{part}"),
            _ => urls.push(part.to_owned()),
        }
    }
    let with_one_host = |url: String| {
        let Range { start, end } = hosts(&url);
        let hosts = url[start..end].split(',');
        hosts.map(|host| format!("{}{host}{}", &url[..start], &url[end..])).collect::<Vec<_>>()
    };
    urls.into_iter().flat_map(with_one_host).collect()
}

/// Where a URL has its hosts: in front of the first /, behind the last @, and so in no part of a login.
fn hosts(url: &str) -> Range<usize> {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    let start = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
    start..end
}

fn parse(text: &str, schemes: &[&str], shape: &str) -> Result<Url, Refusal> {
    plain(text)?;
    // The parser drops line breaks and tabs silently; a password with one would be another.
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Refusal::new("has white space or a control character in it", ENCODE));
    }
    let (scheme, _) = text.split_once("://").unwrap_or_default();
    if !schemes.contains(&scheme.to_ascii_lowercase().as_str()) {
        let wrong = format!("does not begin with {}://", schemes.join(":// or "));
        return Err(Refusal::new(wrong, format!("write {shape}")));
    }
    if text[hosts(text)].contains(',') {
        return Err(Refusal::new("names several hosts", "give one host"));
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
    fn several_hosts_make_one_list() {
        const THREE: &str =
            "user=u|password=p,w|host=a:5672,b:5673,[::1]:5672|port=5672|vhost=v|tls=false";
        for url in [
            "amqp://u:p,w@a,b:5673,[::1]/v",
            "amqp://u:p,w@a:5672/v,amqp://u:p,w@b:5673/v,AMQP://u:p%2Cw@[::1]/v",
            "amqp://u:p,w@a,b:5673/v,amqp://u:p,w@[::1]:5672/v",
        ] {
            assert_eq!(text(amqp(url)), THREE, "{url}");
        }
        let url = "postgres://u@a:6432,b/votes?sslmode=require";
        let parts = "user=u|host=a:6432,b:5432|port=6432|database=votes|sslmode=require";
        assert_eq!(text(postgres(url)), parts);
        for (url, wrong) in [
            ("amqp://u:p@a,amqp://v:p@b", "address 2: has another user than the first"),
            ("amqp://u:p@a,b,amqp://u:q@c", "address 3: has another password than the first"),
            ("amqp://a/v,amqp://b/w", "address 2: has another vhost than the first"),
            ("amqp://a,amqps://b", "address 2: has another tls than the first"),
            ("amqp://a,,b", "address 2: has no host"),
            ("amqp://a,b:x", "address 2: is not a URL"),
        ] {
            assert!(wrong_of(url).starts_with(wrong), "{url}: {}", wrong_of(url));
        }
        let url = "postgres://a/d?sslmode=require,postgres://b/d";
        assert!(wrong(postgres(url)).contains("sslmode"), "a parameter of one alone");
        assert!(wrong_of(&format!("amqp://{}", ["a"; 17].join(","))).contains("17 hosts"));
    }

    fn wrong_of(url: &str) -> String {
        wrong(amqp(url))
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
            "amqp://u:hun,ter2/x@h",
            "amqp://u:1,hunter2/x@h",
            "amqp://u:hunter2@h,amqp://u:p@h",
        ] {
            let postgres_url = url.replacen("amqp", "postgres", 1);
            for refused in [amqp(url), postgres(&postgres_url)] {
                let refusal = refused.expect_err(url);
                assert!(!format!("{refusal:?}").contains("ter2"), "{url}: {refusal:?}");
            }
        }
    }
}
