//! What a run shows while it goes on: progress lines, printed IR, bisection.

use crate::pass::manager::Observer;
use crate::report::SiteReport;
use crate::report::progress::{Progress, TensorLine};

/// Passes what the manager says on to the user.
pub struct Watch<'a> {
    /// Where lines go.
    pub progress: &'a Progress,
}

impl Observer for Watch<'_> {
    fn stage(&self, sites: usize, bytes: u64) {
        self.progress.start(sites as u64, bytes);
    }

    fn site(&self, report: &SiteReport) {
        let errors: Vec<f64> = report.steps.iter().map(|step| step.rel_error).collect();
        self.progress.tensor(&TensorLine {
            name: &report.name,
            shape: &report.shape,
            dtype: &report.source_dtype,
            before: report.bytes_before,
            after: report.bytes_after,
            terms: &terms(report),
            errors: if report.reverted.is_some() {
                &[]
            } else {
                &errors
            },
        });
    }

    fn ir(&self, title: &str, text: &str) {
        self.progress.always(&format!("// {title}\n{text}"));
    }

    fn bisect(&self, line: &str) {
        self.progress.always(line);
    }
}

/// What a site has become, in short: `r64 + 0.5% + int4`.
fn terms(report: &SiteReport) -> String {
    if let Some(reason) = &report.reverted {
        return format!("kept: {reason}");
    }
    let made = report.steps.iter().filter(|step| !step.term.is_empty());
    let parts: Vec<&str> = made.map(|step| step.term.as_str()).collect();
    if parts.is_empty() {
        "kept".into()
    } else {
        parts.join(" + ")
    }
}
