//! The addresses of one side: one, or several that lead to the same servers.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Serialize, Serializer};

use super::problems::Refusal;
use super::values::plain;

/// Most addresses of one side.
pub(super) const MOST: usize = 16;

/// What to do about an address in a list.
const ENTRY: &str = "give at most 16 addresses with commas between them, each as host or host:port, an \
                     IPv6 address in brackets";

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    /// Host name, IP address (IPv6 without brackets), or the directory of a socket.
    pub host: String,
    /// TCP port, also part of the socket's name.
    pub port: u16,
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        match host {
            _ if host.starts_with('/') => write!(f, "{host}/.s.PGSQL.{port}"),
            _ if host.contains(':') => write!(f, "[{host}]:{port}"),
            _ => write!(f, "{host}:{port}"),
        }
    }
}

/// The hosts of one side, one at least, and which of them is in use: clones share that.
#[derive(Clone, Debug)]
pub struct Hosts {
    entries: Arc<[Entry]>,
    in_use: Arc<AtomicUsize>,
    /// Every other one is left out.
    only: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    host: String,
    /// `None`: the port of its setting.
    port: Option<u16>,
}

impl Hosts {
    /// One host, or a list of `host` and `host:port`. With `sockets` the one host may also be the
    /// absolute path of a directory.
    pub(super) fn parse(text: &str, sockets: bool) -> Result<Self, Refusal> {
        plain(text)?;
        let list: Vec<&str> = text.split(',').collect();
        let entries = match list.len() {
            _ if sockets && text.starts_with('/') => {
                vec![Entry { host: text.to_owned(), port: None }]
            }
            1 => vec![Entry { host: host_name(text)?, port: None }],
            2..=MOST => (1..)
                .zip(list)
                .map(|(number, text)| entry(text.trim()).map_err(|wrong| wrong.of_address(number)))
                .collect::<Result<_, _>>()?,
            many => return Err(Refusal::new(format!("names {many} hosts"), ENTRY)),
        };
        Ok(Self { entries: entries.into(), in_use: Arc::default(), only: None })
    }

    pub fn count(&self) -> usize {
        self.listed().len()
    }

    /// The index of the one in use, or to be tried first, in the order of the setting.
    pub fn in_use(&self) -> usize {
        self.only.unwrap_or_else(|| self.in_use.load(Ordering::Relaxed))
    }

    /// Takes one into use; whether another one was before.
    pub fn set_in_use(&self, index: usize) -> bool {
        self.in_use.swap(index, Ordering::Relaxed) != index
    }

    /// All indices in the order in which they are tried: the one in use first.
    pub fn in_turn(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, count, all) = (self.in_use(), self.count(), self.entries.len());
        (0..count).map(move |step| (first + step) % all)
    }

    /// The one with this index alone.
    pub(super) fn only(&self, index: usize) -> Self {
        Self { only: Some(index), ..self.clone() }
    }

    /// Has the next one tried in place of this one, if this one is still in use.
    pub fn leave(&self) {
        let (left, order) = (self.in_use(), Ordering::Relaxed);
        let next = (left + 1) % self.entries.len();
        // Where it fails, another session has been opened elsewhere.
        self.in_use.compare_exchange(left, next, order, order).ok();
    }

    /// Every address; `port` is that of hosts without a port of their own.
    pub(super) fn addresses(&self, port: u16) -> Vec<ServerAddress> {
        self.listed().iter().map(|entry| entry.address(port)).collect()
    }

    /// The address in use.
    pub(super) fn address(&self, port: u16) -> ServerAddress {
        self.entries[self.in_use()].address(port)
    }

    fn listed(&self) -> &[Entry] {
        self.only.map_or(&self.entries[..], |index| &self.entries[index..=index])
    }
}

impl Entry {
    fn address(&self, port: u16) -> ServerAddress {
        ServerAddress { host: self.host.clone(), port: self.port.unwrap_or(port) }
    }
}

/// As in the setting.
impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, entry) in self.listed().iter().enumerate() {
            let Entry { host, port } = entry;
            let comma = if index > 0 { "," } else { "" };
            match port {
                Some(port) => write!(f, "{comma}{}", entry.address(*port))?,
                None if self.count() > 1 && host.contains(':') => write!(f, "{comma}[{host}]")?,
                None => write!(f, "{comma}{host}")?,
            }
        }
        Ok(())
    }
}

impl Serialize for Hosts {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// An address of a list.
fn entry(text: &str) -> Result<Entry, Refusal> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    if host.contains(':') && !host.starts_with('[') {
        return Err(Refusal::new("is not a host with a port", ENTRY));
    }
    let port = port.map(|port| {
        let port = port.parse().ok().filter(|port| *port > 0);
        port.ok_or_else(|| Refusal::new("has a port that is not from 1 to 65535", ENTRY))
    });
    let host = host_name(host).map_err(|refusal| Refusal::new(refusal.wrong, ENTRY))?;
    Ok(Entry { host, port: port.transpose()? })
}

/// A host name or an IP address, not a URL and not `host:port`.
fn host_name(text: &str) -> Result<String, Refusal> {
    let help = "give a host name or an IP address alone; the port has a setting of its own. Several \
                hosts have commas between them";
    plain(text)?;
    // An IPv6 address may come in the brackets that a URL needs.
    let text = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
    if text.is_empty() {
        return Err(Refusal::new("is blank", help));
    }
    let in_a_name = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_');
    if text.parse::<IpAddr>().is_err() && !text.chars().all(in_a_name) {
        return Err(Refusal::new("is not a host name", help));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &str) -> Hosts {
        Hosts::parse(text, true).unwrap_or_else(|refusal| panic!("{text}: {refusal}"))
    }

    #[test]
    fn a_list_has_hosts_with_and_without_a_port() {
        for (text, addresses, shown) in [
            ("mq", "mq:1", "mq"),
            ("[::1]", "[::1]:1", "::1"),
            ("/run/a,b", "/run/a,b/.s.PGSQL.1", "/run/a,b"),
            ("a,b:5673, c", "a:1 b:5673 c:1", "a,b:5673,c"),
            ("[::1],[::2]:7,10.0.0.1:8", "[::1]:1 [::2]:7 10.0.0.1:8", "[::1],[::2]:7,10.0.0.1:8"),
        ] {
            let hosts = hosts(text);
            let all: Vec<_> = hosts.addresses(1).iter().map(ToString::to_string).collect();
            assert_eq!(
                (all.join(" "), hosts.to_string()),
                (addresses.to_owned(), shown.to_owned())
            );
        }
    }

    #[test]
    fn an_address_that_is_wrong_is_named_by_its_number() {
        for (text, wrong) in [
            ("a,", "address 2: is blank"),
            ("a,b:", "address 2: has a port"),
            ("a,b:0,c", "address 2: has a port"),
            ("a:65536,b", "address 1: has a port"),
            ("a,::1", "address 2: is not a host with a port"),
            ("a,fe80::1:5672", "address 2: is not a host with a port"),
            ("a,b,c/d", "address 3: is not a host name"),
            ("a,/run/pg", "address 2: is not a host name"),
            ("a,u@b", "address 2: is not a host name"),
            (&["a"; 17].join(","), "names 17 hosts"),
        ] {
            let refusal = Hosts::parse(text, true).expect_err(text);
            assert!(refusal.wrong.starts_with(wrong), "{text}: {refusal}");
        }
    }

    #[test]
    fn the_next_address_follows_at_each_failure_and_clones_share_it() {
        let hosts = hosts("a,b,c");
        let clone = hosts.clone();
        hosts.set_in_use(1);
        assert_eq!(clone.in_turn().collect::<Vec<_>>(), [1, 2, 0]);
        clone.only(0).leave();
        assert_eq!(hosts.in_use(), 1, "the first was left before");
        clone.only(1).leave();
        clone.only(2).leave();
        assert_eq!(hosts.in_use(), 0);
        let third = hosts.only(2);
        assert_eq!((third.count(), third.in_turn().collect::<Vec<_>>()), (1, vec![2]));
        assert_eq!((third.to_string(), third.address(7).to_string()), ("c".into(), "c:7".into()));
    }
}
