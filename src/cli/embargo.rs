//! What commands say, and ask for, while the results are not public.

use std::io::{self, IsTerminal};

use clap::Args;
use vote_aggregator::adapters::store::{self, Patience, PublicationStatus};
use vote_aggregator::model::publication::Published;
use vote_aggregator::model::results::moment;
use vote_aggregator::platform::config::Config;

use super::exit::{self, Exit};
use super::output;

#[derive(Args)]
pub(super) struct Embargo {
    /// Write results that are not public to something that is not a terminal
    #[arg(long)]
    under_embargo: bool,
}

impl Embargo {
    /// Says on standard error that the results are not public, and refuses to write them to a file or a
    /// pipe unless that was asked for: a job that writes into a web server's folder would publish them.
    /// Returns what is public; `None`: nothing was ever published, and no embargo is set.
    ///
    /// # Errors
    /// The command ends here.
    pub(super) async fn guard(
        &self,
        config: &Config,
        patience: Patience,
    ) -> Result<Option<Published>, Exit> {
        let publication_status = store::publication_status(config, patience).await;
        let publication_status =
            publication_status.map_err(exit::without_postgres("read what is published"))?;
        if let Some(warning) = warning(&publication_status) {
            output::note(warning);
            if !self.under_embargo && !io::stdout().is_terminal() {
                output::note(
                    "standard output is not a terminal; add --under-embargo to write embargoed results to \
                     it",
                );
                let unknown = publication_status == PublicationStatus::Unknown;
                return Err(Exit(if unknown { exit::CREDENTIALS } else { exit::USAGE }));
            }
        }
        Ok(match publication_status {
            PublicationStatus::As(published) => Some(published),
            PublicationStatus::Never | PublicationStatus::Unknown => None,
        })
    }
}

fn warning(publication_status: &PublicationStatus) -> Option<String> {
    match publication_status {
        PublicationStatus::Never => None,
        PublicationStatus::As(published) if published.is_public() => None,
        PublicationStatus::As(Published { state: None, not_before, .. }) => {
            let until = moment(Some(*not_before));
            Some(format!("EMBARGOED until {until}: these results are not for publication"))
        }
        PublicationStatus::As(_) => {
            Some("WITHHELD from the public: these results are not for publication".to_owned())
        }
        PublicationStatus::Unknown => Some(
            "these results may be EMBARGOED: this role may not read published_state. Run roles.sql, or \
             GRANT SELECT ON published_state"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use vote_aggregator::model::publication::State;

    use super::*;

    #[test]
    fn only_public_results_come_without_a_warning() {
        let published = |state| {
            let not_before = datetime!(2026-11-29 20:00 +1);
            let (set_at, test, reason, sha256) = (not_before, false, None, None);
            let published = Published { id: 1, state, not_before, set_at, test, reason, sha256 };
            warning(&PublicationStatus::As(published))
        };
        for state in State::PUBLIC {
            assert_eq!(published(Some(state)), None, "{state}");
        }
        assert_eq!(warning(&PublicationStatus::Never), None);
        let embargoed = published(None).expect("a warning");
        assert!(embargoed.starts_with("EMBARGOED until 2026-11-29 19:00:00Z"), "{embargoed}");
        let withheld = published(Some(State::Withheld)).expect("a warning");
        assert!(withheld.starts_with("WITHHELD"), "{withheld}");
        assert!(warning(&PublicationStatus::Unknown).is_some_and(|it| it.contains("roles.sql")));
    }
}
