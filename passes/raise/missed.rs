//! What is left, and why.

use std::collections::BTreeMap;

use super::Raiser;
use crate::ir::{OpId, OpKind};
use crate::pass::Remark;

/// Names that a remark lists before it counts.
const LISTED: usize = 3;

impl Raiser<'_> {
    /// One remark for each type of op that is left, and for each reason.
    pub(super) fn remarks(&self, kept: &[OpId]) -> Vec<Remark> {
        let mut left: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for &id in kept {
            let Some(op) = self.graph.op(id) else {
                continue;
            };
            let OpKind::Onnx(onnx) = &op.kind else {
                continue;
            };
            // Constants and copies serve the others.
            if matches!(onnx.op_type.as_str(), "Constant" | "Identity") {
                continue;
            }
            let domain = match onnx.domain.as_str() {
                "" | "ai.onnx" => String::new(),
                domain => format!("{domain}."),
            };
            let result = op.results.iter().flatten().next();
            let value = result.and_then(|&v| self.graph.value(v));
            let name = match op.name.is_empty() {
                true => value.map_or("", |v| v.name.as_str()),
                false => &op.name,
            };
            let kind = format!("onnx.{domain}{}", onnx.op_type);
            left.entry(kind).or_default().push(name.to_string());
        }
        let mut remarks = Vec::new();
        for (kind, places) in &left {
            let message = format!("{} left: {}", places.len(), listed(places));
            remarks.push(Remark::missed(kind, message));
        }
        for (why, places) in &self.near {
            let site = places.first().map_or("", String::as_str);
            let message = match places.len() {
                1 => why.clone(),
                n => format!("{why} ({n} times)"),
            };
            remarks.push(Remark::missed(site, message));
        }
        remarks
    }
}

fn listed(places: &[String]) -> String {
    let mut text = places
        .iter()
        .take(LISTED)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if places.len() > LISTED {
        text.push_str(", …");
    }
    text
}
