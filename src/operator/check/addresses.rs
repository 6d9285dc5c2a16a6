//! What `vote-aggregator check --connect` says of the addresses of a list.

use futures::future::join_all;

use super::broker::{INSPECT_TIMEOUT, place, refused};
use super::{Finding, Report, Severity};
use crate::adapters::broker::{self, QueueStatus};
use crate::adapters::store::{self, Role, StartError};
use crate::model::ports::OpenError;
use crate::platform::config::{Config, RabbitMq, ServerAddress};

use Severity::{Error, Info, Warning};

/// Visits every node of RabbitMQ, and takes the first that answers into use.
pub(super) async fn rabbitmq(config: &Config) -> Report {
    let hosts = &config.rabbitmq.host;
    if hosts.count() == 1 {
        return Report::default();
    }
    let nodes: Vec<RabbitMq> = (0..hosts.count()).map(|n| config.rabbitmq.at(n)).collect();
    let reached = join_all(nodes.iter().map(|node| broker::reach(node, INSPECT_TIMEOUT))).await;
    let used = reached.iter().position(Result::is_ok);
    hosts.set_in_use(used.unwrap_or_default());
    of_nodes(config, &nodes, &reached)
}

/// Of all nodes but the one in use, which is looked at closely.
fn of_nodes(
    config: &Config,
    nodes: &[RabbitMq],
    reached: &[Result<Option<QueueStatus>, OpenError>],
) -> Report {
    let in_use = config.rabbitmq.host.in_use();
    let mut report = Report::default();
    for (index, (node, reached_node)) in nodes.iter().zip(reached).enumerate() {
        if index == in_use {
            continue;
        }
        report.checked.push(broker::describe(node));
        match (reached_node, &reached[in_use]) {
            (Err(error), others) => {
                let severity = if others.is_ok() { Warning } else { Error };
                report.findings.push(Finding { severity, ..refused(config, error) });
            }
            (Ok(here), Ok(there)) if here.is_some() != there.is_some() => {
                let meaning = format!(
                    "of {:?} only one has the queue: they are not nodes of one cluster, and votes in \
                     the other one would not be counted",
                    [place(node), place(&nodes[in_use])]
                );
                let remedy = "list nodes of one cluster only (rabbitmqctl cluster_status)";
                report.findings.push(Finding::new(Error, place(node), meaning, remedy));
            }
            _ => {}
        }
    }
    report
}

/// Visits every server of PostgreSQL.
pub(super) async fn postgres(config: &Config) -> Report {
    match config.postgres.host.count() {
        1 => Report::default(),
        _ => of_servers(store::roles(&config.postgres).await),
    }
}

/// That none takes writes is an error of the closer look.
fn of_servers(servers: Vec<(ServerAddress, Result<Role, StartError>)>) -> Report {
    let mut report = Report::default();
    let mut takes_writes: Option<ServerAddress> = None;
    for (address, role) in servers {
        let place = format!("PostgreSQL on {address}");
        report.checked.push(place.clone());
        let mut add = |severity, meaning: &str, remedy: &str| {
            report.findings.push(Finding::new(severity, &place, meaning, remedy));
        };
        match role {
            Ok(Role::Standby) => {
                add(Info, "a standby: the service uses it once it is promoted", "nothing");
            }
            Ok(Role::ReadOnly) => add(
                Warning,
                "no standby, and read-only: the service cannot use it",
                "set default_transaction_read_only to off there",
            ),
            Ok(Role::TakesWrites) => match &takes_writes {
                None => takes_writes = Some(address),
                Some(first) => {
                    let meaning = format!(
                        "it takes writes, and so does {first}: if they are two servers, votes would be \
                         counted in both"
                    );
                    let remedy =
                        "list one primary with its standbys; end a primary that was replaced";
                    add(Warning, &meaning, remedy);
                }
            },
            Err(error) => {
                let remedy =
                    "start it, or check its address; it is no use in a failover until then";
                add(Warning, &error.to_string(), remedy);
            }
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;
    use crate::model::ports::{Class, Fault};

    fn severities(report: &Report) -> Vec<(Severity, &str)> {
        let found = report.findings.iter();
        found.map(|finding| (finding.severity, finding.subject.as_str())).collect()
    }

    #[test]
    fn a_node_that_is_away_or_of_another_cluster_is_found() {
        let config = config("RABBITMQ_HOST=a,b,c");
        let nodes: Vec<RabbitMq> = (0..3).map(|n| config.rabbitmq.at(n)).collect();
        let queue = || Ok(Some(QueueStatus::default()));
        let away = || Err(OpenError::Unavailable("away".to_owned()));
        config.rabbitmq.host.set_in_use(1);
        let found = |reached: [_; 3]| of_nodes(&config, &nodes, &reached);
        assert_eq!(severities(&found([queue(), queue(), queue()])), []);
        assert_eq!(severities(&found([Ok(None), Ok(None), Ok(None)])), []);
        let report = found([away(), queue(), Ok(None)]);
        let expected = [(Warning, "rabbitmq.host"), (Error, "RabbitMQ on c:5672")];
        assert_eq!(severities(&report), expected);
        assert_eq!(report.checked.len(), 2, "the one in use is looked at closely");
        let report = found([away(), away(), away()]);
        assert_eq!(severities(&report), [(Error, "rabbitmq.host"), (Error, "rabbitmq.host")]);
    }

    #[test]
    fn each_server_is_named_with_its_role() {
        let away = StartError::Unavailable(Fault::new(Class::Reconnect, "away"));
        let roles = [Ok(Role::Standby), Ok(Role::TakesWrites), Err(away), Ok(Role::TakesWrites)];
        let servers = (1..).zip(roles);
        let address = |port| ServerAddress { host: "a".to_owned(), port };
        let report = of_servers(servers.map(|(port, role)| (address(port), role)).collect());
        let expected = [
            (Info, "PostgreSQL on a:1"),
            (Warning, "PostgreSQL on a:3"),
            (Warning, "PostgreSQL on a:4"),
        ];
        assert_eq!(severities(&report), expected);
        assert!(report.findings[2].meaning.contains("a:2"), "{report:?}");
    }
}
