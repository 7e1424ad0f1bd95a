use super::*;
use std::cell::Cell;

/// Ids are bytes. Says the script over and over, whatever it is given, from its last byte on.
struct Parrot {
    script: Vec<u8>,
    seen: Vec<u32>,
    runs: Vec<usize>,
    logits: Vec<f32>,
    keeps: usize,
}

impl Parrot {
    fn new(script: &str) -> Self {
        Self {
            script: script.bytes().collect(),
            seen: Vec::new(),
            runs: Vec::new(),
            logits: Vec::new(),
            keeps: usize::MAX,
        }
    }
}

impl LanguageModel for Parrot {
    fn vocabulary(&self) -> usize {
        256
    }

    fn forward(&mut self, tokens: &[u32]) -> Result<&[f32], ModelError> {
        if tokens.contains(&8) {
            return Err(ModelError::Interrupted);
        }
        if tokens.contains(&7) {
            return Err(ModelError::Failed("the bell rang".into()));
        }
        self.seen.extend_from_slice(tokens);
        self.runs.push(tokens.len());
        // `>` ends a prompt; what was said behind the last one says where the script is.
        let said = self
            .seen
            .iter()
            .rev()
            .take_while(|&&t| t != u32::from(b'>'))
            .count();
        let next = self.script[said % self.script.len()];
        self.logits = vec![0.0; 256];
        self.logits[usize::from(next)] = 9.0;
        Ok(&self.logits)
    }

    fn rewind(&mut self, keep: usize) -> usize {
        let keep = keep.min(self.keeps);
        self.seen.truncate(keep);
        keep
    }
}

struct Bytes;

impl Decode for Bytes {
    fn text(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[derive(Default)]
struct Notes {
    pieces: Vec<(Option<u32>, String)>,
    stop_after: Option<usize>,
    asked: Cell<usize>,
    broken: bool,
}

impl Listener for Notes {
    fn piece(&mut self, piece: Piece<'_>) -> std::io::Result<()> {
        self.pieces.push((piece.token, piece.text.to_owned()));
        match self.broken {
            true => Err(std::io::ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }

    fn interrupted(&self) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.stop_after.is_some_and(|n| self.asked.get() > n)
    }
}

fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn settings() -> Settings {
    Settings {
        max_tokens: 8,
        context: 1000,
        sampling: Sampling::default(),
        stops: Vec::new(),
        stop_tokens: Vec::new(),
        ends: vec![u32::from(b'.')],
    }
}

fn run(session: &mut Session<Parrot>, prompt: &str, settings: &Settings) -> Result<Generated> {
    let mut notes = Notes::default();
    let made =
        generate(session, &Bytes, &ids(prompt), settings, &mut notes).expect("notes are taken");
    if let Ok(made) = &made {
        let told: String = notes.pieces.iter().map(|(_, text)| text.as_str()).collect();
        let tokens: Vec<u32> = notes
            .pieces
            .iter()
            .filter_map(|(token, _)| *token)
            .collect();
        assert_eq!((&told, &tokens), (&made.text, &made.tokens));
    }
    made
}

fn once(script: &str, settings: &Settings) -> Generated {
    run(&mut Session::new(Parrot::new(script)), ">", settings).expect("generated")
}

#[test]
fn goes_on_until_something_ends_it() {
    let made = once("one two. three", &settings());
    assert_eq!(
        (made.text.as_str(), made.finish.clone()),
        ("one two", Finish::End)
    );
    assert_eq!((made.tokens.len(), made.steps), (7, 7));
    let made = once("abcdefghijkl", &settings());
    assert_eq!(
        (made.text.as_str(), made.finish.clone(), made.steps),
        ("abcdefgh", Finish::Length, 7)
    );
    let short = Settings {
        context: 4,
        ..settings()
    };
    let made = once("abcdefghijkl", &short);
    assert_eq!((made.text.as_str(), made.finish), ("abc", Finish::Context));
    let stops = Settings {
        stops: vec!["de".into()],
        ..settings()
    };
    let made = once("abcdefghijkl", &stops);
    assert_eq!(
        (made.text.as_str(), made.finish),
        ("abc", Finish::Stop("de".into()))
    );
    let special = Settings {
        stop_tokens: vec![(u32::from(b'.'), "<end>".into())],
        ..settings()
    };
    let made = once("ab.cdef", &special);
    assert_eq!(
        (made.text.as_str(), made.tokens.len(), made.finish),
        ("ab", 2, Finish::Stop("<end>".into()))
    );
    let through = Settings {
        ends: Vec::new(),
        ..settings()
    };
    assert_eq!(once("a.b.c.d.e.", &through).text, "a.b.c.d.");
}

#[test]
fn what_waits_comes_at_the_end() {
    let stops = Settings {
        stops: vec!["hij".into()],
        ..settings()
    };
    assert_eq!(once("abcdefghijkl", &stops).text, "abcdefgh");
    let cut = Settings {
        max_tokens: 2,
        ..settings()
    };
    assert_eq!(once("a€", &cut).text, "a\u{fffd}");
}

#[test]
fn an_interrupt_keeps_what_there_is() {
    for (after, text) in [(0, ""), (1, ""), (3, "ab")] {
        let mut notes = Notes {
            stop_after: Some(after),
            ..Notes::default()
        };
        let mut session = Session::new(Parrot::new("abcdef"));
        let made = generate(&mut session, &Bytes, &ids(">"), &settings(), &mut notes);
        let made = made.expect("told").expect("generated");
        assert_eq!(
            (made.text.as_str(), made.finish),
            (text, Finish::Interrupted)
        );
    }
}

#[test]
fn a_model_that_is_interrupted_ends_it() {
    let mut session = Session::new(Parrot::new("ab\u{8}cd"));
    let made = run(&mut session, ">", &settings()).expect("generated");
    assert_eq!(
        (made.text.as_str(), made.finish),
        ("ab\u{8}", Finish::Interrupted)
    );
    let made = run(&mut Session::new(Parrot::new("x")), "\u{8}>", &settings()).expect("generated");
    assert_eq!((made.text.as_str(), made.finish), ("", Finish::Interrupted));
}

#[test]
fn a_conversation_runs_only_what_is_new() {
    let mut session = Session::new(Parrot::new("yes."));
    let made = run(&mut session, "one>", &settings()).expect("generated");
    assert_eq!((made.text.as_str(), made.cached), ("yes", 0));
    let made = run(&mut session, "one>yes two>", &settings()).expect("generated");
    assert_eq!((made.text.as_str(), made.cached), ("yes", 7));
    assert_eq!(session.model.seen, ids("one>yes two>yes"));
    // The same again: the last token is run for its logits.
    let made = run(&mut session, "one>", &settings()).expect("generated");
    assert_eq!((made.text.as_str(), made.cached), ("yes", 3));
    // A model that can't go back to where it should starts earlier.
    session.model.keeps = 2;
    let made = run(&mut session, "one>no>", &settings()).expect("generated");
    assert_eq!((made.text.as_str(), made.cached), ("yes", 2));
    assert_eq!(session.model.seen, ids("one>no>yes"));
}

#[test]
fn long_prompts_are_run_in_parts() {
    let mut session = Session::new(Parrot::new("x."));
    let prompt = "p".repeat(1200) + ">";
    let wide = Settings {
        context: 2000,
        ..settings()
    };
    run(&mut session, &prompt, &wide).expect("generated");
    assert_eq!(session.model.runs, [512, 512, 177, 1]);
}

#[test]
fn what_cannot_be_run_is_refused() {
    let fails = |prompt: &str, settings: &Settings| {
        run(&mut Session::new(Parrot::new("x")), prompt, settings).expect_err(prompt)
    };
    assert!(matches!(fails("", &settings()), TextError::EmptyPrompt));
    let short = Settings {
        context: 3,
        ..settings()
    };
    assert!(matches!(
        fails("abc", &short),
        TextError::TooLong {
            tokens: 3,
            context: 3
        }
    ));
    assert!(
        fails("a\u{7}", &settings())
            .to_string()
            .contains("the bell rang")
    );
    let wild = Sampling {
        top_p: 2.0,
        ..Sampling::default()
    };
    let wild = Settings {
        sampling: wild,
        ..settings()
    };
    assert!(matches!(fails("a", &wild), TextError::Sampling(_)));
    let mut session = Session::new(Parrot::new("x"));
    let mut notes = Notes::default();
    let foreign = generate(&mut session, &Bytes, &[300], &settings(), &mut notes).expect("told");
    assert!(matches!(
        foreign,
        Err(TextError::Vocabulary {
            token: 300,
            vocabulary: 256
        })
    ));
}

#[test]
fn a_listener_that_is_gone_ends_it() {
    let mut notes = Notes {
        broken: true,
        ..Notes::default()
    };
    let mut session = Session::new(Parrot::new("x"));
    assert!(generate(&mut session, &Bytes, &ids(">"), &settings(), &mut notes).is_err());
    assert_eq!(session.model.runs, [1]);
}

#[test]
fn a_prompt_that_is_not_read_to_its_end_has_no_rate() {
    let mut session = Session::new(Parrot::new("abc"));
    // The second piece is interrupted.
    let mut prompt = vec![u32::from(b'x'); PREFILL + 5];
    prompt[PREFILL + 2] = 8;
    let mut quiet = Notes::default();
    let settings = Settings {
        context: 9999,
        ..settings()
    };
    let made = generate(&mut session, &Bytes, &prompt, &settings, &mut quiet);
    let made = made.expect("told").expect("no error");
    assert_eq!(made.finish, Finish::Interrupted);
    assert_eq!((made.prefilled, made.prefill_rate()), (PREFILL, None));
    // What was run is known, what was not is run again.
    assert_eq!(session.seen.len(), PREFILL);
    prompt[PREFILL + 2] = 9;
    let made = generate(&mut session, &Bytes, &prompt, &settings, &mut quiet);
    let made = made.expect("told").expect("no error");
    assert_eq!((made.cached, made.prefilled), (PREFILL, 5));
    assert!(made.prefill_rate().is_some_and(|rate| rate > 0.0));
}
