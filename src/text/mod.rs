//! Text in and out of a language model: tokens, chat templates, sampling, streaming.
//!
//! [`Tokenizer`] reads the files beside a model, [`ChatTemplate`] makes a prompt of a conversation,
//! [`Sampler`] chooses the next token, [`Detokenizer`] and [`Stops`] turn tokens into text as they
//! come, and [`generate`](generate::generate) puts them together around a [`LanguageModel`]. Nothing
//! here knows how a model is executed.

mod calendar;
pub mod chat;
mod error;
mod files;
pub mod generate;
pub mod sampler;
pub mod special;
pub mod stream;
mod template;
pub mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use error::TextError;
pub use generate::{Finish, Generated, LanguageModel, Session, Settings};
pub use sampler::{Sampler, Sampling, SamplingError};
pub use special::Special;
pub use stream::{Decode, Detokenizer, Stops};
pub use tokenizer::Tokenizer;

/// Result of everything in this module.
pub type Result<T, E = TextError> = std::result::Result<T, E>;
