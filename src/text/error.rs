//! Why text can't be made into tokens or back: what, where, what to do.

use std::io;
use std::path::{Path, PathBuf};

use super::sampler::SamplingError;

/// What goes wrong on the way from text to tokens and back. [`TextError::help`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The operating system refused.
    #[error("{}: can't be read: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A model without a tokenizer beside it.
    #[error("{}: there is no tokenizer.json{}", folder.display(), Instead(.instead))]
    NoTokenizer {
        /// Where it was looked for.
        folder: PathBuf,
        /// What is there instead; may be empty.
        instead: String,
    },
    /// A file that says something else than it should.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, where in it.
        problem: String,
    },
    /// Text that the tokenizer can't take, or ids that it can't.
    #[error("{}: the tokenizer fails on the text: {problem}", path.display())]
    Tokens {
        /// The tokenizer's file.
        path: PathBuf,
        /// What it says.
        problem: String,
    },
    /// A model without a chat template.
    #[error("{}: the model has no chat template (chat_template in tokenizer_config.json, or chat_template.jinja)", .0.display())]
    NoChat(PathBuf),
    /// A chat template that can't be used, or refuses the conversation.
    #[error("{}: the chat template fails: {problem}", path.display())]
    Template {
        /// The template's file.
        path: PathBuf,
        /// What is wrong, in which line of it.
        problem: String,
    },
    /// A prompt without a token.
    #[error("the prompt is empty and the tokenizer puts no token in front")]
    EmptyPrompt,
    /// A prompt that leaves no room.
    #[error("the prompt has {tokens} tokens, the context {context}")]
    TooLong {
        /// Its tokens.
        tokens: usize,
        /// Tokens that the model is run with, answer included.
        context: usize,
    },
    /// A token that the model doesn't have.
    #[error(
        "the tokenizer gives token {token}, the model has {vocabulary}: they don't belong together"
    )]
    Vocabulary {
        /// The token.
        token: u32,
        /// Rows of the model's embedding.
        vocabulary: usize,
    },
    /// No token can be chosen.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The model can't be run.
    #[error("{0}")]
    Model(#[source] Box<dyn std::error::Error + Send + Sync>),
}

struct Instead<'a>(&'a str);

impl std::fmt::Display for Instead<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            "" => Ok(()),
            found => write!(f, ", but {found}"),
        }
    }
}

impl TextError {
    /// What the user can do; empty where the message says it.
    pub fn help(&self) -> &'static str {
        match self {
            TextError::Read { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => "check the path",
                io::ErrorKind::PermissionDenied => "check the permissions",
                _ => "",
            },
            TextError::NoTokenizer { instead, .. } if instead.is_empty() => {
                "put the model's tokenizer.json beside it, or name it with --tokenizer"
            }
            TextError::NoTokenizer { .. } => {
                "make a tokenizer.json of it: transformers' AutoTokenizer.from_pretrained(FOLDER)\
                 .save_pretrained(FOLDER)"
            }
            TextError::NoChat(_) => {
                "leave --chat out to continue the text, or name another folder with --tokenizer"
            }
            TextError::EmptyPrompt => "give some text with --prompt",
            TextError::TooLong { .. } => {
                "shorten the prompt, or allow more with --ctx, up to the positions that the model has"
            }
            TextError::Vocabulary { .. } => "name the model's own tokenizer with --tokenizer",
            TextError::Sampling(SamplingError::NotFinite { .. } | SamplingError::Nothing(_)) => {
                "`hlrc-opt verify` finds weights that are NaN or infinite"
            }
            _ => "",
        }
    }

    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        TextError::Read {
            path: path.to_path_buf(),
            source,
        }
    }

    pub(super) fn file(path: &Path, problem: impl Into<String>) -> Self {
        TextError::File {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }
}
