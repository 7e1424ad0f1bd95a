//! Special tokens: which begin a text and which end it, by the files beside a model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value};

use super::{Result, TextError, files};

/// What a model's configuration says about special tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Special {
    /// Tokens by their part, as `bos_token` and `eos_token`, in the form that templates use.
    pub tokens: BTreeMap<String, String>,
    /// Ids at which the model ends its text, as its generation or model configuration has them.
    pub eos: BTreeSet<u32>,
    /// Id with which a text begins, as the same files have it.
    pub bos: Option<u32>,
    /// Whether a text is to begin with `bos_token`; none leaves it to `tokenizer.json`.
    pub add_bos: Option<bool>,
    /// Tokens that the model was made for.
    pub context: Option<usize>,
}

impl Special {
    /// Reads `special_tokens_map.json`, `tokenizer_config.json`, `generation_config.json` and
    /// `config.json` of a folder; each may be absent.
    ///
    /// # Errors
    /// A file that can't be read, is no JSON, or has a field of another type.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut special = Self::default();
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            if let Some(object) = files::object(&path)? {
                special
                    .of_tokenizer(&object)
                    .map_err(|problem| TextError::file(&path, problem))?;
            }
        }
        let generation = folder.join("generation_config.json");
        let mut told = false;
        if let Some(object) = files::object(&generation)? {
            let read = special.of_model(&object);
            read.map_err(|problem| TextError::file(&generation, problem))?;
            told = !special.eos.is_empty();
        }
        let path = folder.join("config.json");
        if let Some(object) = files::object(&path)? {
            let generation = std::mem::take(&mut special.eos);
            let bos = special.bos;
            special
                .of_config(&object)
                .map_err(|problem| TextError::file(&path, problem))?;
            special.bos = bos.or(special.bos);
            // Where both say something, the generation's is the one made for it.
            if told {
                special.eos = generation;
            }
        }
        Ok(special)
    }

    /// Takes what `tokenizer_config.json` or `special_tokens_map.json` says.
    ///
    /// # Errors
    /// What is wrong with which field.
    pub fn of_tokenizer(&mut self, object: &Map<String, Value>) -> Result<(), String> {
        for (key, value) in object {
            if !key.ends_with("_token") || key.starts_with("add_") {
                continue;
            }
            let content = match value {
                Value::Object(token) => token.get("content").unwrap_or(&Value::Null),
                other => other,
            };
            match content {
                Value::String(token) => self.tokens.insert(key.clone(), token.clone()),
                Value::Null | Value::Bool(_) => None,
                _ => return Err(format!("`{key}` is neither a token nor null")),
            };
        }
        match object.get("add_bos_token") {
            None | Some(Value::Null) => {}
            Some(Value::Bool(add)) => self.add_bos = Some(*add),
            Some(_) => return Err("`add_bos_token` is neither true nor false".into()),
        }
        Ok(())
    }

    /// Takes the ids that `generation_config.json` or `config.json` says.
    ///
    /// # Errors
    /// What is wrong with which field.
    pub fn of_model(&mut self, object: &Map<String, Value>) -> Result<(), String> {
        if let Some(bos) = ids(object, "bos_token_id")?.first() {
            self.bos = Some(*bos);
        }
        self.eos.extend(ids(object, "eos_token_id")?);
        Ok(())
    }

    /// Takes ids and the length of the context from `config.json`.
    fn of_config(&mut self, object: &Map<String, Value>) -> Result<(), String> {
        self.of_model(object)?;
        let inner = object.get("text_config").and_then(Value::as_object);
        if let Some(inner) = inner {
            self.of_model(inner)?;
        }
        let keys = ["max_position_embeddings", "n_positions", "n_ctx"];
        let objects = [Some(object), inner];
        let length = objects.into_iter().flatten().find_map(|object| {
            let value = keys.iter().find_map(|key| object.get(*key))?.as_u64()?;
            usize::try_from(value).ok().filter(|&n| n > 0)
        });
        self.context = length;
        Ok(())
    }
}

/// Ids in a field that is a number, a list of numbers, or null.
fn ids(object: &Map<String, Value>, key: &str) -> Result<Vec<u32>, String> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match object.get(key) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        // -1 is how some say that there is none.
        Some(value) if value.as_i64().is_some_and(|n| n < 0) => Some(Vec::new()),
        Some(value) => id(value).map(|id| vec![id]),
    };
    ids.ok_or_else(|| format!("`{key}` is neither an id, a list of ids, nor null"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a scratch folder");
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).expect("written");
        }
        dir
    }

    fn open(files: &[(&str, &str)]) -> Result<Special> {
        Special::open(folder(files).path())
    }

    #[test]
    fn an_empty_folder_says_nothing() {
        assert_eq!(open(&[]).expect("nothing to go wrong"), Special::default());
    }

    #[test]
    fn later_files_count() {
        let special = open(&[
            (
                "special_tokens_map.json",
                r#"{"bos_token": "<old>", "pad_token": {"content": "<pad>"}}"#,
            ),
            (
                "tokenizer_config.json",
                r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": null,
               "add_bos_token": false, "additional_special_tokens": ["<x>"]}"#,
            ),
            ("generation_config.json", r#"{"eos_token_id": [7, 9]}"#),
            (
                "config.json",
                r#"{"eos_token_id": 2, "bos_token_id": 1, "max_position_embeddings": 512}"#,
            ),
        ]);
        let special = special.expect("valid");
        assert_eq!(
            special.tokens.get("bos_token").map(String::as_str),
            Some("<s>")
        );
        assert_eq!(
            special.tokens.get("pad_token").map(String::as_str),
            Some("<pad>")
        );
        assert_eq!(special.eos, BTreeSet::from([7, 9]));
        assert_eq!(special.bos, Some(1));
        assert_eq!(special.add_bos, Some(false));
        assert_eq!(special.context, Some(512));
    }

    #[test]
    fn nested_text_configurations_are_read() {
        let special = open(&[(
            "config.json",
            r#"{"text_config": {"eos_token_id": 3, "max_position_embeddings": 64}}"#,
        )]);
        let special = special.expect("valid");
        assert_eq!(
            (special.eos, special.context),
            (BTreeSet::from([3]), Some(64))
        );
    }

    #[test]
    fn wrong_types_are_told_with_file_and_field() {
        for (file, content, part) in [
            ("config.json", r#"{"eos_token_id": "two"}"#, "eos_token_id"),
            (
                "generation_config.json",
                r#"{"eos_token_id": [1, 99999999999]}"#,
                "eos_token_id",
            ),
            ("tokenizer_config.json", r#"{"bos_token": 5}"#, "bos_token"),
            (
                "tokenizer_config.json",
                r#"{"add_bos_token": "yes"}"#,
                "add_bos_token",
            ),
            ("tokenizer_config.json", "[]", "no object"),
            ("tokenizer_config.json", "{", "no JSON"),
        ] {
            let message = open(&[(file, content)]).expect_err(content).to_string();
            assert!(
                message.contains(file) && message.contains(part),
                "{message}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_json_panics(json in "[\\[\\]{}\",:a-z0-9 _-]{0,60}", value in "[\\[\\]{}\",0-9a-z.-]{0,12}") {
            let keyed = format!(r#"{{"eos_token_id": {value}, "bos_token": {value}, "n_ctx": {value}}}"#);
            for text in [json, keyed] {
                if let Ok(Value::Object(object)) = serde_json::from_str(&text) {
                    let mut special = Special::default();
                    let _ = special.of_tokenizer(&object);
                    let _ = special.of_config(&object);
                }
            }
        }
    }
}
