//! Reports and evaluations back from their files.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::{ModelReport, REPORT_VERSION};
use crate::eval::Evaluation;

/// Most bytes of a report that are read.
const MOST_BYTES: u64 = 1 << 30;

/// Why a file is no report, or no evaluation.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It can't be read.
    #[error("{}: can't be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// It is larger than any report.
    #[error("{}: has {bytes} bytes; a report has at most {MOST_BYTES}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// It is no JSON, or not what a report holds.
    #[error("{}: is no {what}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// It is another kind of file.
    #[error("{}: is {found}, not {expected}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What was expected.
        expected: &'static str,
    },
    /// A later version of the tool wrote it.
    #[error("{}: report_version is {found}; this tool reads versions up to {REPORT_VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What stands there.
        found: String,
    },
    /// A report without an evaluation.
    #[error("{}: the report holds no evaluation", path.display())]
    NotJudged {
        /// The file.
        path: PathBuf,
    },
}

impl ReadError {
    /// What to do.
    pub fn help(&self) -> &'static str {
        match self {
            ReadError::Io { .. } => "check the path",
            ReadError::TooLarge { .. } | ReadError::Json { what: "report", .. } => {
                "name an output folder, or the report.json that a run wrote"
            }
            ReadError::Json { .. } => "name what `hlrc-opt eval … --json` printed",
            ReadError::Kind {
                expected: "a report",
                ..
            } => "name the output or its report.json; evaluations go to --eval",
            ReadError::Kind { .. } => "name what `hlrc-opt eval … --json` printed",
            ReadError::Version { .. } => {
                "use the version of hlrc-opt that wrote it, or a later one"
            }
            ReadError::NotJudged { .. } => {
                "judge the output first: hlrc-opt eval OUT --ref MODEL --data text.txt --json > eval.json"
            }
        }
    }
}

/// A report, and the evaluation in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The report.
    pub report: ModelReport,
    /// What `opt --eval` found.
    pub evaluation: Option<Evaluation>,
}

/// What tells kinds and versions apart.
#[derive(Deserialize)]
struct Head {
    report_version: Option<Value>,
    sites: Option<serde::de::IgnoredAny>,
    kind: Option<Value>,
}

#[derive(Deserialize)]
struct Judged {
    evaluation: Option<Evaluation>,
}

/// Reads a report.
///
/// # Errors
/// It can't be read, is no report, or is of a later version.
pub fn report(path: &Path) -> Result<Stored, ReadError> {
    let text = content(path)?;
    let head = head(path, &text, "report")?;
    if head.sites.is_none() && head.kind.is_some() {
        return Err(ReadError::Kind {
            path: path.into(),
            found: "an evaluation",
            expected: "a report",
        });
    }
    check_version(path, &head)?;
    let report: ModelReport = parse(path, &text, "report")?;
    let judged: Judged = parse(path, &text, "report")?;
    Ok(Stored {
        report,
        evaluation: judged.evaluation,
    })
}

/// Reads an evaluation: what `eval --json` printed, or the one in a report.
///
/// # Errors
/// It can't be read, or holds none.
pub fn evaluation(path: &Path) -> Result<Evaluation, ReadError> {
    let text = content(path)?;
    let head = head(path, &text, "evaluation")?;
    if head.sites.is_some() {
        check_version(path, &head)?;
        let judged: Judged = parse(path, &text, "report")?;
        return judged
            .evaluation
            .ok_or_else(|| ReadError::NotJudged { path: path.into() });
    }
    parse(path, &text, "evaluation")
}

fn content(path: &Path) -> Result<String, ReadError> {
    let io = |source| ReadError::Io {
        path: path.into(),
        source,
    };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > MOST_BYTES {
        return Err(ReadError::TooLarge {
            path: path.into(),
            bytes,
        });
    }
    std::fs::read_to_string(path).map_err(io)
}

fn parse<'a, T: Deserialize<'a>>(
    path: &Path,
    text: &'a str,
    what: &'static str,
) -> Result<T, ReadError> {
    serde_json::from_str(text).map_err(|source| ReadError::Json {
        path: path.into(),
        what,
        source,
    })
}

fn head(path: &Path, text: &str, what: &'static str) -> Result<Head, ReadError> {
    parse(path, text, what)
}

fn check_version(path: &Path, head: &Head) -> Result<(), ReadError> {
    let known = match &head.report_version {
        // The first reports had no version.
        None => true,
        Some(version) => version
            .as_u64()
            .is_some_and(|v| (1..=u64::from(REPORT_VERSION)).contains(&v)),
    };
    match known {
        true => Ok(()),
        false => Err(ReadError::Version {
            path: path.into(),
            found: head
                .report_version
                .as_ref()
                .map_or_else(String::new, Value::to_string),
        }),
    }
}
