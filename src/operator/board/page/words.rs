//! The words for states, and for what is wrong.

use time::UtcOffset;

use crate::model::publication::State;
use crate::operator::board::view::{Outcome, View};
use crate::operator::board::{Language, Stale};

/// A text in French and in English.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words(&'static str, &'static str);

impl Words {
    pub const fn of(self, language: Language) -> &'static str {
        language.of(self.0, self.1)
    }
}

pub(super) const INTERRUPTED: Words = Words(
    "Mise à jour interrompue : ces chiffres ne sont peut-être plus à jour.",
    "Updates are interrupted: these figures may be out of date.",
);
pub(super) const RESTORED: Words = Words("La mise à jour a repris.", "Updates have resumed.");
pub(super) const TEST: Words =
    Words("TEST – chiffres fictifs, sans valeur", "TEST – fictitious figures, not a result");
pub(super) const UNOFFICIAL: Words = Words(
    "Seul le résultat définitif, proclamé par l'autorité, fait foi.",
    "Only the final result, as declared by the authority, is official.",
);
pub(super) const NO_VOTES: Words = Words("Aucun vote compté à ce stade.", "No votes counted yet.");

/// The state in words, which is what the title begins with.
pub(super) fn heading(view: &View<'_>, language: Language, offset: UtcOffset) -> String {
    let words = match (view.published, view.state()) {
        (Some(published), None) => {
            let time = language.opening(published.not_before, offset);
            return format!("{} {time}", language.of("Résultats à partir de", "Results from"));
        }
        (None, _) | (_, Some(State::Withheld)) => {
            Words("Résultats non publiés", "Results not published")
        }
        (_, Some(State::Counting)) => {
            Words("Résultats partiels, non officiels", "Partial results, unofficial")
        }
        (_, Some(State::Provisional)) => {
            Words("Résultats provisoires, non officiels", "Provisional results, unofficial")
        }
        (_, Some(State::Final)) => Words("Résultats définitifs", "Final results"),
    };
    words.of(language).to_owned()
}

/// What a state means for its numbers.
pub(super) const fn explanation(state: State) -> Words {
    match state {
        State::Withheld => Words(
            "Aucun chiffre n'est publié pour le moment.",
            "No figures are published for the time being.",
        ),
        State::Counting => Words(
            "Dépouillement en cours : tous les votes ne sont pas encore comptés.",
            "Counting is under way: not all votes are counted yet.",
        ),
        State::Provisional => Words(
            "Tous les votes sont comptés. Ces chiffres peuvent encore changer.",
            "All votes are counted. These figures may still change.",
        ),
        State::Final => Words(
            "Copie figée du résultat proclamé : elle ne change plus.",
            "A frozen copy of the declared result: it no longer changes.",
        ),
    }
}

/// Why the numbers are not the newest.
pub(super) const fn staleness(stale: Stale) -> Words {
    match stale {
        Stale::Database => Words(
            "Mise à jour interrompue : la base de données ne répond pas",
            "Updates are interrupted: the database does not answer",
        ),
        Stale::Decrease => Words(
            "Mise à jour interrompue : un chiffre a baissé sans correction enregistrée",
            "Updates are interrupted: a count went down without a correction on record",
        ),
        Stale::Older => Words(
            "Mise à jour interrompue : la base de données a donné des chiffres plus anciens",
            "Updates are interrupted: the database returned older figures",
        ),
    }
}

/// Why a law's numbers do not follow every vote: each step could be one citizen's.
pub(super) fn steps(min_new_votes: u64, language: Language) -> String {
    match language {
        Language::Fr => format!(
            "Les chiffres d'une loi ne changent qu'à partir de {min_new_votes} nouveaux votes, pour protéger \
             le secret du vote : moins de {min_new_votes} votes par loi peuvent ne pas encore être affichés."
        ),
        Language::En => format!(
            "The figures of a law change only once there are at least {min_new_votes} new votes, to protect \
             the secrecy of the ballot: fewer than {min_new_votes} votes on a law may not be shown yet."
        ),
    }
}

pub(super) const fn outcome(outcome: Outcome) -> Words {
    match outcome {
        Outcome::Accepted => Words("Adoptée", "Accepted"),
        Outcome::Rejected => Words("Rejetée", "Rejected"),
        Outcome::Tie => Words("Égalité des voix", "Tie"),
    }
}
