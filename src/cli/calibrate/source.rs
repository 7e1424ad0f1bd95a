//! Statistics as passes take them.

use std::fmt;
use std::path::Path;

use crate::calib::Statistics;
use crate::pass::{MomentSource, Moments};

impl fmt::Debug for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "statistics in {}", self.path().display())
    }
}

impl MomentSource for Statistics {
    fn identity(&self) -> String {
        let meta = std::fs::metadata(self.path()).ok();
        let bytes = meta.map_or(0, |m| m.len());
        format!("{} {bytes} {:?}", self.path().display(), self.metadata())
    }

    fn moments(&self, site: &str) -> Result<Option<Moments>, String> {
        let found = self.site(site).map_err(|e| e.to_string())?;
        Ok(found.map(|found| Moments {
            hessian: found.hessian,
            diagonal: found.diag,
            tokens: found.tokens,
        }))
    }

    fn file(&self) -> Option<&Path> {
        Some(self.path())
    }
}
