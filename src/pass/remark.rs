//! Remarks: what passes have to say about single tensors.

use serde::{Deserialize, Serialize};

/// Kind of a remark, as in LLVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RemarkKind {
    /// A pass did what it was asked.
    Passed,
    /// A pass did not, and says why.
    Missed,
    /// Something worth knowing.
    Analysis,
    /// A pass failed.
    Failed,
}

/// One remark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Remark {
    /// Kind.
    pub kind: RemarkKind,
    /// The pass that speaks.
    pub pass: String,
    /// The tensor or op that it speaks of.
    pub site: String,
    /// What it says.
    pub message: String,
}

impl RemarkKind {
    /// Word that filters and output use.
    pub fn name(self) -> &'static str {
        match self {
            RemarkKind::Passed => "passed",
            RemarkKind::Missed => "missed",
            RemarkKind::Analysis => "analysis",
            RemarkKind::Failed => "failed",
        }
    }
}

impl Remark {
    /// A `missed` remark; the manager fills in the pass.
    pub fn missed(site: &str, message: impl Into<String>) -> Self {
        Self::new(RemarkKind::Missed, site, message)
    }

    /// An `analysis` remark; the manager fills in the pass.
    pub fn analysis(site: &str, message: impl Into<String>) -> Self {
        Self::new(RemarkKind::Analysis, site, message)
    }

    /// A remark; the manager fills in the pass.
    pub fn new(kind: RemarkKind, site: &str, message: impl Into<String>) -> Self {
        Self {
            kind,
            pass: String::new(),
            site: site.to_string(),
            message: message.into(),
        }
    }
}

impl std::fmt::Display for Remark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, pass, site) = (self.kind.name(), &self.pass, &self.site);
        write!(f, "{kind}: {pass}: {site}: {}", self.message)
    }
}
