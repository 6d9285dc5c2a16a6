//! Notes, policies, checkpoints and proofs.

use crate::model::tlog::checkpoint::Checkpoint;
use crate::model::tlog::note::{KeyError, Note, NoteError, SignerKey, VerifierKey};
use crate::model::tlog::policy::{Policy, PolicyError, Unsigned};
use crate::model::tlog::proof::Proof;

/// Keys and a note of Go's golang.org/x/mod/sumdb/note, and one of C2SP's.
#[test]
fn notes_are_signed_and_verified_as_others_do_it() {
    let private = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
    let public = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    let signer = SignerKey::parse(private).expect("a key");
    assert_eq!(signer.secret_text(), private);
    assert_eq!(signer.verifier().to_string(), public);
    let text = "If you think cryptography is the answer to your problem,\n\
                then you don't know what your problem is.\n";
    let mut note = Note::new(text.to_owned()).expect("a text");
    note.sign(&signer);
    let signed = format!(
        "{text}\n\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfq\
         dngotpRZb6KE6RyyBwJnAM=\n"
    );
    assert_eq!(note.to_string(), signed);
    let parsed = Note::parse(signed.as_bytes()).expect("a note");
    assert_eq!(parsed.signed_by(&signer.verifier()), Ok(true));

    let key = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
    let key = VerifierKey::parse(key).expect("a key");
    let note = "This is an example message.\n\n\u{2014} example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2O\
                NncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";
    assert_eq!(Note::parse(note.as_bytes()).expect("a note").signed_by(&key), Ok(true));
    let forged = Note::parse(note.replace("an example", "no example").as_bytes()).expect("a note");
    assert_eq!(forged.signed_by(&key), Err(NoteError::Forged { name: "example.com/foo".into() }));
    assert_eq!(parsed.signed_by(&key), Ok(false), "signatures of other keys are ignored");
}

#[test]
fn what_is_no_note_and_no_key_is_refused() {
    let line = "\u{2014} a AAAAAAAA";
    for wrong in [
        "text\n",
        "text\n\n",
        "text\n\nno signature\n",
        "text\n\n\u{2014} a+b AAAAAAAA\n",
        "te\rxt\n\n\u{2014} a AAAAAAAA\n",
        "text\n\n\u{2014} a AAAAAA==\n",
        "text\n\n\u{2014} a AAAAAAAA",
    ] {
        assert!(Note::parse(wrong.as_bytes()).is_err(), "{wrong:?}");
    }
    let many = |count| format!("text\n\n{}", format!("{line}\n").repeat(count));
    assert!(Note::parse(many(16).as_bytes()).is_ok());
    assert!(Note::parse(many(101).as_bytes()).is_err());
    assert!(Note::parse(&[0xff; 10]).is_err());
    for (key, error) in [
        ("a", KeyError::Form),
        ("+00000000+AAAA", KeyError::Name),
        ("a b+00000000+AAAA", KeyError::Name),
        ("PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", KeyError::Id),
        ("PeterNeumann+c74f20a3+AhpC2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", KeyError::Type),
        ("PeterNeumann+c74f20a3+ARpc", KeyError::Form),
    ] {
        assert_eq!(VerifierKey::parse(key), Err(error), "{key}");
    }
}

fn key(name: &str, byte: u8) -> SignerKey {
    SignerKey::new(name, [byte; 32]).expect("a name")
}

#[test]
fn a_policy_decides_which_signatures_a_checkpoint_needs() {
    let log = key("votes.example/1", 1);
    let witnesses = [2, 3, 4].map(|byte| key(&format!("w{byte}.example"), byte));
    let lines: String = (1..)
        .zip(&witnesses)
        .map(|(number, witness)| {
            format!("witness w{number} {} https://w{number}.example\n", witness.witness())
        })
        .collect();
    let text = |rest: &str| format!("# of the test\nlog {}\n{lines}{rest}", log.verifier());
    let policy = |rest: &str| Policy::parse(&text(rest));
    let two = policy("group two 2 w1 w2 w3\n\tquorum two\n").expect("a policy");
    let nested =
        policy("group any any w1 w2\ngroup all all any w3\nquorum all\n").expect("a policy");
    let none = policy("quorum none\n").expect("a policy");

    let checkpoint = Checkpoint { origin: "votes.example/1".into(), size: 5, root: [9; 32] };
    let mut note = Note::new(checkpoint.to_string()).expect("a text");
    assert_eq!(none.read(&note), Err(Unsigned::Log));
    note.sign(&log);
    let quorum = |policy: &Policy, note: &Note| policy.read(note).expect("signed").quorum;
    assert!(quorum(&none, &note) && !quorum(&two, &note));
    note.cosign(&witnesses[0], 1_000);
    assert!(!quorum(&two, &note) && !quorum(&nested, &note));
    note.cosign(&witnesses[2], 2_000);
    let note = Note::parse(note.to_string().as_bytes()).expect("a note");
    let signed = two.read(&note).expect("signed");
    assert_eq!(signed.checkpoint, checkpoint);
    assert_eq!(signed.witnessed, [("w1".into(), 1_000), ("w3".into(), 2_000)].into());
    assert!(quorum(&two, &note) && quorum(&nested, &note));
    // A log's own signature is none of a witness, and a witness's none of a log.
    let own = format!("log {}\nquorum none", witnesses[0].verifier());
    assert_eq!(Policy::parse(&own).expect("a policy").read(&note), Err(Unsigned::Log));

    for (rest, error) in [
        ("", PolicyError::NoQuorum),
        ("quorum nobody\n", PolicyError::Unknown(6, "nobody".into())),
        ("group g 4 w1 w2 w3\n", PolicyError::Line(6)),
        ("group g 0 w1\n", PolicyError::Line(6)),
        ("group g any w1\ngroup h any w1\n", PolicyError::Unknown(7, "w1".into())),
        ("group w1 any w2\n", PolicyError::Repeated(6)),
        ("quorum none\nquorum none\n", PolicyError::Line(7)),
    ] {
        assert_eq!(policy(rest).expect_err("refused"), error, "{rest}");
    }
    assert_eq!(Policy::parse("quorum none").expect_err("refused"), PolicyError::NoLog);
}

#[test]
fn checkpoints_and_proofs_have_one_text_each() {
    let checkpoint = Checkpoint { origin: "o".into(), size: 10, root: [1; 32] };
    let text = checkpoint.to_string();
    assert_eq!(Checkpoint::parse(&text), Ok(checkpoint));
    for wrong in [
        text.replace("10", "010"),
        text.replace("10", "+10"),
        format!("{text}more\n"),
        text.replacen("o\n", "\n", 1),
        text.trim_end().to_owned(),
        text.replace('=', ""),
    ] {
        assert!(Checkpoint::parse(&wrong).is_err(), "{wrong:?}");
    }
    let mut note = Note::new(text).expect("a text");
    note.sign(&key("o", 1));
    for extra in [None, Some(b"{}".to_vec())] {
        let proof =
            Proof { extra, index: 3, hashes: vec![[1; 32], [2; 32]], checkpoint: note.clone() };
        assert_eq!(Proof::parse(&proof.to_string()), Ok(proof.clone()));
        let text = proof.to_string();
        for wrong in [
            text.replace("index 3", "index 03"),
            text.replace("@v1", "@v2"),
            text.replacen("AQ", "A", 1),
        ] {
            assert!(Proof::parse(&wrong).is_err(), "{wrong}");
        }
    }
}
