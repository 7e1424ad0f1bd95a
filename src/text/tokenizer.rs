//! Text to token ids and back, as `tokenizer.json` says.

use std::cmp::Ordering;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::special::Special;
use super::stream::Decode;
use super::{Result, TextError, files};

/// The tokenizer's file in a model's folder.
pub const FILE: &str = "tokenizer.json";

/// A tokenizer and what its model's files say about special tokens.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: Special,
    bos: Option<u32>,
    path: PathBuf,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.path)
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Opens the tokenizer of a folder, or of the folder that a `tokenizer.json` is in.
    ///
    /// # Errors
    /// There is none, or a file of it can't be read or understood.
    pub fn open(place: &Path) -> Result<Self> {
        let (path, folder) = if place.is_dir() {
            (place.join(FILE), place)
        } else {
            let folder = place.parent().filter(|p| !p.as_os_str().is_empty());
            (place.to_path_buf(), folder.unwrap_or(Path::new(".")))
        };
        let Some(json) = files::read(&path, files::TOKENIZER)? else {
            return Err(TextError::NoTokenizer {
                folder: folder.to_path_buf(),
                instead: instead(folder),
            });
        };
        Self::new(&path, &json, Special::open(folder)?)
    }

    /// A tokenizer from the content of its file; `path` is for messages.
    ///
    /// Truncation and padding that the file asks for are left out: they are a matter of batches.
    ///
    /// # Errors
    /// The content is no tokenizer.
    pub fn new(path: &Path, json: &[u8], special: Special) -> Result<Self> {
        let bad = |problem: String| TextError::file(path, format!("is no tokenizer: {problem}"));
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(json)).map_err(bad)?;
        inner.with_padding(None);
        guarded(|| inner.with_truncation(None).map(|_| ())).map_err(bad)?;
        let named = special.tokens.get("bos_token");
        let bos = named
            .and_then(|token| inner.token_to_id(token))
            .or(special.bos);
        Ok(Self {
            inner,
            special,
            bos,
            path: path.to_path_buf(),
        })
    }

    /// The ids of a text, and nothing in front or behind it.
    ///
    /// Special tokens that are spelled out in the text become themselves, as in `transformers`.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, false)
    }

    /// The ids of a text with what the model expects around it, such as a first `<s>`.
    ///
    /// `tokenizer.json` says what that is; `add_bos_token` in `tokenizer_config.json` overrules it.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.ids(text, true)?;
        let Some(bos) = self.bos else {
            return Ok(ids);
        };
        let begins = ids.first() == Some(&bos);
        match self.special.add_bos {
            Some(true) if !begins => ids.insert(0, bos),
            // A first token that the text itself spells out stays.
            Some(false) if begins && self.ids(text, false)?.first() != Some(&bos) => {
                ids.remove(0);
            }
            _ => {}
        }
        Ok(ids)
    }

    /// The ids of a text with what the model expects around it where `special`, each with the bytes of the
    /// text that it stands for; added tokens stand for none.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode_spans(&self, text: &str, special: bool) -> Result<Vec<(u32, Range<usize>)>> {
        let encoded = guarded(|| self.inner.encode(text, special));
        let encoded = encoded.map_err(|problem| TextError::Tokens {
            path: self.path.clone(),
            problem,
        })?;
        let spans = encoded.get_offsets().iter().map(|&(from, to)| from..to);
        let mut all: Vec<_> = encoded.get_ids().iter().copied().zip(spans).collect();
        if special {
            let want = self.encode_with_special(text)?;
            match (want.len().cmp(&all.len()), want.first()) {
                (Ordering::Greater, Some(&bos)) => all.insert(0, (bos, 0..0)),
                (Ordering::Less, _) => {
                    all.remove(0);
                }
                _ => {}
            }
        }
        Ok(all)
    }

    fn ids(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoded = guarded(|| self.inner.encode_fast(text, special));
        let encoded = encoded.map_err(|problem| TextError::Tokens {
            path: self.path.clone(),
            problem,
        })?;
        Ok(encoded.get_ids().to_vec())
    }

    /// Whether the model's text ends at this id.
    pub fn ends(&self, id: u32) -> bool {
        self.ends_at().any(|end| end == id)
    }

    /// The ids at which the model's text ends: those of its configuration, and `eos_token`.
    pub fn ends_at(&self) -> impl Iterator<Item = u32> {
        let named = self.special.tokens.get("eos_token");
        let named = named.and_then(|token| self.inner.token_to_id(token));
        self.special.eos.iter().copied().chain(named)
    }

    /// The id with which a text begins, where the model has one.
    pub fn begins_with(&self) -> Option<u32> {
        self.bos
    }

    /// What the model's files say about special tokens.
    pub fn special(&self) -> &Special {
        &self.special
    }

    /// The id of a token by its spelling.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The id of a special token by its spelling: one that has no text.
    pub fn special_id(&self, token: &str) -> Option<u32> {
        let id = self.id(token)?;
        let added = self.inner.get_added_tokens_decoder();
        added.get(&id).is_some_and(|t| t.special).then_some(id)
    }

    /// Ids that the tokenizer has, added ones included.
    pub fn size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Decode for Tokenizer {
    fn text(&self, ids: &[u32]) -> String {
        // Decoders fail on nothing that ids can say; unknown ids are left out.
        guarded(|| self.inner.decode(ids, true)).unwrap_or_default()
    }
}

/// Runs what belongs to the tokenizer, which is not made for hostile files: its panics are errors too.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(shortened(&error.to_string())),
        Err(_) => Err("it breaks its reader".into()),
    }
}

/// A message that may quote half a vocabulary, cut.
fn shortened(message: &str) -> String {
    let cut: String = message.chars().take(300).collect();
    match cut.len() < message.len() {
        true => cut + " …",
        false => cut,
    }
}

/// What a folder has in place of a `tokenizer.json`.
fn instead(folder: &Path) -> String {
    const OTHERS: [(&str, &str); 7] = [
        ("tokenizer.model", "SentencePiece"),
        ("spiece.model", "SentencePiece"),
        ("sentencepiece.bpe.model", "SentencePiece"),
        ("tiktoken.model", "tiktoken"),
        ("merges.txt", "vocabulary and merges"),
        ("vocab.txt", "WordPiece"),
        ("tokenizer.bin", "llama2.c"),
    ];
    let there = OTHERS.iter().find(|(name, _)| folder.join(name).is_file());
    there.map_or_else(String::new, |(name, what)| format!("{name} ({what})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Detokenizer;
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::LazyLock;

    const STORIES: &str = "tests/fixtures/stories260K";

    static TOKENIZER: LazyLock<Tokenizer> =
        LazyLock::new(|| Tokenizer::open(Path::new(STORIES)).expect("the fixture"));

    #[test]
    fn stories_begin_with_bos_and_end_with_eos() {
        let tokenizer = &*TOKENIZER;
        let ids = tokenizer
            .encode_with_special("Once upon a time")
            .expect("encoded");
        assert_eq!(ids.first(), Some(&1));
        assert_eq!(
            ids.get(1..),
            tokenizer.encode("Once upon a time").ok().as_deref()
        );
        assert_eq!(tokenizer.text(&ids), "Once upon a time");
        assert!(tokenizer.ends(2) && !tokenizer.ends(1));
        assert_eq!((tokenizer.size(), tokenizer.begins_with()), (512, Some(1)));
    }

    fn with(add_bos: Option<bool>) -> Tokenizer {
        let json = std::fs::read(Path::new(STORIES).join(FILE)).expect("the fixture");
        let mut special = TOKENIZER.special.clone();
        special.add_bos = add_bos;
        Tokenizer::new(Path::new(FILE), &json, special).expect("the fixture")
    }

    #[test]
    fn the_configuration_overrules_what_comes_first() {
        let first = |add_bos, text| {
            let ids = with(add_bos).encode_with_special(text).expect("encoded");
            ids.iter().take_while(|&&id| id == 1).count()
        };
        assert_eq!(first(None, "a"), 1);
        assert_eq!(first(Some(true), "a"), 1);
        assert_eq!(first(Some(false), "a"), 0);
    }

    #[test]
    fn padding_and_truncation_are_left_out() {
        let path = Path::new(STORIES).join(FILE);
        let json = std::fs::read(&path).expect("the fixture");
        let mut json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        json["truncation"] = json!({"max_length": 3, "strategy": "LongestFirst", "stride": 0,
            "direction": "Right"});
        json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<unk>", "pad_to_multiple_of": null});
        let bytes = serde_json::to_vec(&json).expect("JSON");
        let cut = Tokenizer::new(&path, &bytes, Special::default()).expect("a tokenizer");
        let text = "Once upon a time there was a cat";
        assert_eq!(cut.encode(text).ok(), TOKENIZER.encode(text).ok());
    }

    #[test]
    fn what_is_missing_is_told_with_what_is_there() {
        let dir = tempfile::tempdir().expect("a scratch folder");
        let error = Tokenizer::open(dir.path()).expect_err("nothing there");
        assert!(error.to_string().ends_with("there is no tokenizer.json"));
        assert!(error.help().contains("--tokenizer"));
        std::fs::write(dir.path().join("tokenizer.model"), "x").expect("written");
        let error = Tokenizer::open(dir.path()).expect_err("SentencePiece");
        assert!(
            error
                .to_string()
                .contains("tokenizer.model (SentencePiece)")
        );
        assert!(error.help().contains("save_pretrained"));
    }

    #[test]
    fn damaged_files_are_errors() {
        for json in [
            "",
            "{",
            "[]",
            "{}",
            r#"{"model": {"type": "BPE"}}"#,
            r#"{"model": 1}"#,
        ] {
            let error = Tokenizer::new(
                Path::new("x/tokenizer.json"),
                json.as_bytes(),
                Special::default(),
            );
            let message = error.expect_err(json).to_string();
            assert!(
                message.starts_with("x/tokenizer.json: is no tokenizer"),
                "{message}"
            );
        }
    }

    proptest! {
        #[test]
        fn text_streams_as_it_is(text in "[\\PC\n]{0,60}", prompt in "\\PC{1,10}") {
            // SentencePiece models know no difference between a space and U+2581.
            let text = format!("x{}", text.replace('\u{2581}', "_"));
            let ids = TOKENIZER.encode(&text).expect("encoded");
            prop_assert_eq!(TOKENIZER.text(&ids), text.as_str());
            let before = TOKENIZER.encode(&prompt).expect("encoded");
            let mut stream = Detokenizer::new(&*TOKENIZER, &before);
            let mut told: String = ids.iter().map(|&id| stream.push(id)).collect();
            told += &stream.finish();
            prop_assert_eq!(told, format!(" {text}"));
        }

        #[test]
        fn no_ids_panic(ids in prop::collection::vec(0u32..600, 0..80)) {
            let mut stream = Detokenizer::new(&*TOKENIZER, &[]);
            for &id in &ids {
                let _ = stream.push(id);
            }
            let _ = stream.finish();
            let _ = TOKENIZER.text(&ids);
        }

        #[test]
        fn no_damage_panics(at in 0usize..9700, byte in any::<u8>(), drop in 0usize..40) {
            let mut json = std::fs::read(Path::new(STORIES).join(FILE)).expect("the fixture");
            let end = (at + drop).min(json.len());
            json.splice(at.min(end)..end, [byte]);
            let read = Tokenizer::new(Path::new(FILE), &json, Special::default());
            let _ = read.and_then(|t| Ok(t.text(&t.encode_with_special("Once upon a time é\u{1f600}")?)));
        }
    }
}
