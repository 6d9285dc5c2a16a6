//! Why a side works or does not, in two texts: one for HTTP clients, one for operators.
//!
//! Architecture invariant: what is shown over HTTP is a phrase out of the program's text, with a
//! SQLSTATE at most. An address, a user, a database, a virtual host or a queue is known at run time
//! only, and no constructor here takes such text for the shown part.

use serde::{Serialize, Serializer};

use crate::model::ports::{BrokerError, Fault, OpenError};

/// A reason in two texts. Serialized, it is the shown one; the private one is for the log and the
/// status of the service manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    phrase: &'static str,
    sqlstate: Option<String>,
    private: Option<String>,
}

impl Reason {
    /// A reason that is shown as `phrase`, and privately as `private`.
    pub const fn new(phrase: &'static str, private: String) -> Self {
        Self { phrase, sqlstate: None, private: Some(private) }
    }

    /// A fault of PostgreSQL that is shown as `phrase` with its SQLSTATE.
    pub fn of_fault(phrase: &'static str, fault: &Fault) -> Self {
        // A trigger may raise any text in its place.
        let is_one = |code: &String| {
            let known = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_uppercase();
            code.len() == 5 && code.bytes().all(known)
        };
        let sqlstate = fault.sqlstate.clone().filter(is_one);
        Self { phrase, sqlstate, private: Some(format!("{phrase}: {fault}")) }
    }

    /// The text for operators.
    pub fn private(&self) -> String {
        self.private.clone().unwrap_or_else(|| self.shown())
    }

    /// The text for whoever asks over HTTP.
    pub fn shown(&self) -> String {
        match &self.sqlstate {
            Some(sqlstate) => format!("{}: SQLSTATE {sqlstate}", self.phrase),
            None => self.phrase.to_owned(),
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown())
    }
}

/// One text for both.
impl From<&'static str> for Reason {
    fn from(phrase: &'static str) -> Self {
        Self { phrase, sqlstate: None, private: None }
    }
}

impl From<&Fault> for Reason {
    fn from(fault: &Fault) -> Self {
        let phrase = match fault.sqlstate.as_deref() {
            None => "no connection, or no answer in time",
            Some("25006") => "read-only: a standby, or default_transaction_read_only",
            Some("08P01" | "26000" | "42P05") => "a pooler that the service cannot work through",
            Some(code) if code.starts_with("28") => "credentials refused",
            Some(code) if code.starts_with("08") || code.starts_with("57P") => "no connection",
            Some(_) => "PostgreSQL refuses a statement",
        };
        Self { private: Some(fault.to_string()), ..Self::of_fault(phrase, fault) }
    }
}

impl From<&OpenError> for Reason {
    fn from(error: &OpenError) -> Self {
        let phrase = match error {
            OpenError::Credentials(_) => "credentials, certificate or permission refused",
            OpenError::Configuration(_) => "refused: virtual host, queue type or TLS; see the log",
            OpenError::Occupied { phrase, .. } => phrase,
            OpenError::Unavailable(_) => "no connection",
        };
        Self::new(phrase, error.to_string())
    }
}

impl From<&BrokerError> for Reason {
    fn from(lost: &BrokerError) -> Self {
        let phrase = match lost {
            BrokerError::ConsumerTimeout(_) => "consumer time-out: votes were held for too long",
            BrokerError::ConsumerEnded { .. } => {
                "the broker ended the consumer: is the queue there?"
            }
            BrokerError::OutOfReach(_) => {
                "the queue is out of reach: was its node cut off from the others?"
            }
            _ => "session lost",
        };
        Self::new(phrase, lost.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ports::Class;

    #[test]
    fn a_reason_is_serialized_without_its_private_text() {
        let secret = "peculiar-text";
        let fault = |sqlstate: Option<&str>| Fault {
            class: Class::Pause,
            sqlstate: sqlstate.map(str::to_owned),
            message: secret.to_owned(),
        };
        let open = [OpenError::Credentials, OpenError::Configuration, OpenError::Unavailable];
        let mut reasons: Vec<Reason> =
            open.into_iter().map(|error| Reason::from(&error(secret.to_owned()))).collect();
        reasons.push(Reason::from(&BrokerError::disconnected("consume", secret)));
        reasons.push(Reason::new("phrase", secret.to_owned()));
        for code in [None, Some("28P01"), Some("57P01"), Some("53100"), Some(secret)] {
            reasons.push(Reason::from(&fault(code)));
            reasons.push(Reason::of_fault("phrase", &fault(code)));
        }
        for reason in reasons {
            let shown = serde_json::to_string(&reason).expect("serializable");
            assert!(!shown.contains(secret), "{shown}");
            assert!(reason.private().contains(secret), "{reason:?}");
        }
    }

    #[test]
    fn a_sqlstate_is_shown_when_it_is_one() {
        let shown = |code: &str| {
            let fault = Fault {
                class: Class::Pause,
                sqlstate: Some(code.to_owned()),
                message: String::new(),
            };
            Reason::of_fault("takes no votes", &fault).shown()
        };
        assert_eq!(shown("53100"), "takes no votes: SQLSTATE 53100");
        for odd in ["", "5310", "db-01", "53\u{e9}1", "531000"] {
            assert_eq!(shown(odd), "takes no votes", "{odd:?}");
        }
    }
}
