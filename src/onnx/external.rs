//! Tensor data in files beside the model.
//!
//! Source: ONNX "External Data". A location is a relative path below the
//! model's directory; anything that could leave it is refused before a file
//! is touched, links that leave it are refused by [`resolve`].

use std::path::{Component, Path, PathBuf};

use super::message::Message;
use super::schema::{entry, tensor};

/// Where a tensor's data lies, as the model states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalData {
    /// Path relative to the model's directory, `/` between parts.
    pub location: String,
    /// First byte; 0 if not stated.
    pub offset: u64,
    /// Bytes; `None` means what the shape says.
    pub length: Option<u64>,
    /// SHA-1 as written, not checked.
    pub checksum: Option<String>,
}

/// Why external data can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    /// `external` is set but no `location` is given.
    #[error("external tensor has no location; the model is damaged")]
    NoLocation,
    /// `offset` or `length` isn't a number.
    #[error("external tensor: {key} {value:?} is no byte count")]
    Number {
        /// `offset` or `length`.
        key: &'static str,
        /// What stands there.
        value: String,
    },
    /// A location that could leave the model's directory.
    #[error(
        "external data {0:?} is refused: it must be a relative path below the model's directory"
    )]
    Escapes(String),
    /// The file can't be opened or isn't a regular file.
    #[error("external data {path}: {source}; it belongs beside the model")]
    Open {
        /// The path tried.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The range lies outside the file.
    #[error(
        "external data {location:?}: bytes {offset}..+{length} but the file has {size}; it is truncated or of another model"
    )]
    Range {
        /// As stated.
        location: String,
        /// As stated.
        offset: u64,
        /// As stated or from the shape.
        length: u64,
        /// Size of the file.
        size: u64,
    },
}

impl ExternalData {
    /// Reads the entries of a tensor; `None` if its data isn't external.
    ///
    /// # Errors
    /// No location, a path that is refused, numbers that don't parse.
    pub fn of(message: &Message) -> Result<Option<Self>, ExternalError> {
        if message.int(tensor::DATA_LOCATION) != Some(1) {
            return Ok(None);
        }
        let mut data = Self {
            location: String::new(),
            offset: 0,
            length: None,
            checksum: None,
        };
        for pair in message.messages(tensor::EXTERNAL_DATA) {
            let value = pair.text_or_empty(entry::VALUE);
            match pair.text_or_empty(entry::KEY) {
                "location" => data.location = value.to_owned(),
                "offset" => data.offset = number("offset", value)?,
                "length" => data.length = Some(number("length", value)?),
                "checksum" => data.checksum = Some(value.to_owned()),
                // Other keys are the writer's own and are kept with the message.
                _ => {}
            }
        }
        check_location(&data.location)?;
        Ok(Some(data))
    }

    /// Checks that the range lies within a file of `size` bytes.
    ///
    /// # Errors
    /// It does not. `needed` is the length that dtype and shape ask for.
    pub fn check(&self, needed: u64, size: u64) -> Result<(), ExternalError> {
        let length = self.length.unwrap_or(needed);
        match self.offset.checked_add(length) {
            Some(end) if end <= size => Ok(()),
            _ => Err(ExternalError::Range {
                location: self.location.clone(),
                offset: self.offset,
                length,
                size,
            }),
        }
    }
}

fn number(key: &'static str, value: &str) -> Result<u64, ExternalError> {
    value.trim().parse().map_err(|_| ExternalError::Number {
        key,
        value: value.to_owned(),
    })
}

/// Refuses locations that aren't plain paths below the model's directory.
///
/// # Errors
/// [`ExternalError::NoLocation`] or [`ExternalError::Escapes`].
pub fn check_location(location: &str) -> Result<(), ExternalError> {
    if location.is_empty() {
        return Err(ExternalError::NoLocation);
    }
    // Backslashes and drive letters would be separators on other systems.
    let foreign = location.contains(['\\', '\0']) || location.get(1..2) == Some(":");
    let inside = Path::new(location)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if foreign || !inside {
        return Err(ExternalError::Escapes(location.to_owned()));
    }
    Ok(())
}

/// The path of a location below `directory`, links followed and checked.
///
/// # Errors
/// The location is refused, doesn't exist, or is no regular file below
/// `directory` once links are followed.
pub fn resolve(directory: &Path, location: &str) -> Result<PathBuf, ExternalError> {
    check_location(location)?;
    let joined = directory.join(location);
    let open = |source| ExternalError::Open {
        path: joined.display().to_string(),
        source,
    };
    let root = directory.canonicalize().map_err(open)?;
    let path = joined.canonicalize().map_err(open)?;
    if !path.starts_with(&root) {
        return Err(ExternalError::Escapes(location.to_owned()));
    }
    if !path.is_file() {
        return Err(open(std::io::Error::other("not a regular file")));
    }
    Ok(joined)
}
