//! What passes said, alike remarks together.

use std::collections::HashMap;

use crate::pass::{Remark, RemarkKind};
use crate::report::html::markup::{escape, section};
use crate::report::html::{Page, nothing};

/// Groups that are shown.
const MOST_GROUPS: usize = 150;
/// Remarks that are listed of a group.
const MOST_LISTED: usize = 60;

/// Stands for a number in a pattern; no message has it.
const SLOT: char = '\u{1}';

/// Remarks of one kind and pass that differ in names and numbers only.
struct Group<'a> {
    kind: RemarkKind,
    pass: &'a str,
    pattern: String,
    remarks: Vec<&'a Remark>,
}

/// The section.
pub fn render(page: &Page<'_>) -> String {
    let title = "What passes said";
    let groups = collect(&page.report.remarks);
    if groups.is_empty() {
        return section(
            "remarks",
            title,
            "",
            &nothing("No pass had anything to say."),
        );
    }
    let mut body = String::from("<ul class=\"remarks\">\n");
    for group in groups.iter().take(MOST_GROUPS) {
        body.push_str(&item(group));
    }
    body.push_str("</ul>\n");
    if groups.len() > MOST_GROUPS {
        let more = groups.len() - MOST_GROUPS;
        body.push_str(&nothing(&format!(
            "{more} more groups of remarks are in report.json."
        )));
    }
    let intro = "Missed is what a pass was asked for and did not do, and why. Remarks that differ in their \
                 numbers only are one line, with the smallest and the largest of each number.";
    section("remarks", title, intro, &body)
}

fn order(kind: RemarkKind) -> u8 {
    match kind {
        RemarkKind::Failed => 0,
        RemarkKind::Missed => 1,
        RemarkKind::Analysis => 2,
        RemarkKind::Passed => 3,
    }
}

fn collect(remarks: &[Remark]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut index: HashMap<(RemarkKind, &str, String), usize> = HashMap::new();
    for remark in remarks {
        let (pattern, _) = split(&remark.message);
        let next = groups.len();
        let key = (remark.kind, remark.pass.as_str(), pattern.clone());
        let at = *index.entry(key).or_insert(next);
        if at == next {
            groups.push(Group {
                kind: remark.kind,
                pass: &remark.pass,
                pattern,
                remarks: Vec::new(),
            });
        }
        if let Some(group) = groups.get_mut(at) {
            group.remarks.push(remark);
        }
    }
    groups.sort_by_key(|group| (order(group.kind), std::cmp::Reverse(group.remarks.len())));
    groups
}

/// A message as its text with [`SLOT`] for each number, and the numbers.
fn split(message: &str) -> (String, Vec<&str>) {
    let (mut text, mut numbers) = (String::new(), Vec::new());
    let mut rest = message;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(start);
        let end = from.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ','));
        let (number, behind) = from.split_at(end.unwrap_or(from.len()));
        // What ends a sentence is no part of a number.
        let own = number.trim_end_matches(['.', ',']);
        text.push_str(before);
        text.push(SLOT);
        text.push_str(number.get(own.len()..).unwrap_or_default());
        numbers.push(own);
        rest = behind;
    }
    text.push_str(rest);
    (text, numbers)
}

/// What all remarks of a group say, with the range of each number: `rank 8 to 32`.
fn common(group: &Group<'_>) -> String {
    let numbers: Vec<Vec<&str>> = group.remarks.iter().map(|r| split(&r.message).1).collect();
    let mut out = String::new();
    for (index, part) in group.pattern.split(SLOT).enumerate() {
        if let Some(slot) = index.checked_sub(1) {
            let all = numbers.iter().filter_map(|n| n.get(slot).copied());
            out.push_str(&range(all));
        }
        out.push_str(part);
    }
    out
}

/// `8`, `8–32`, or `#` where what stands there is no number.
fn range<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    type End<'t> = (f64, &'t str);
    let mut ends: Option<(End<'_>, End<'_>)> = None;
    for text in texts {
        let Ok(value) = text.parse::<f64>() else {
            return "#".into();
        };
        let own = (value, text);
        ends = Some(match ends {
            None => (own, own),
            Some((low, high)) => (
                if value < low.0 { own } else { low },
                if value > high.0 { own } else { high },
            ),
        });
    }
    match ends {
        Some((low, high)) if low.0 < high.0 => format!("{}–{}", low.1, high.1),
        Some((low, _)) => low.1.to_string(),
        None => "#".into(),
    }
}

fn item(group: &Group<'_>) -> String {
    let kind = group.kind.name();
    let count = group.remarks.len();
    let first = group.remarks.first().map_or("", |r| r.message.as_str());
    let same = group.remarks.iter().all(|r| r.message == first);
    let message = if same {
        first.to_string()
    } else {
        common(group)
    };
    let head = format!(
        "<b class=\"kind {kind}\">{kind}</b> <code>{}</code> {} <span class=\"count\">{}</span>",
        escape(group.pass),
        escape(&message),
        match group.remarks.as_slice() {
            [only] => escape(&only.site),
            _ => format!("{count} times"),
        }
    );
    if count == 1 {
        return format!("<li>{head}</li>\n");
    }
    let lines = group.remarks.iter().take(MOST_LISTED).map(|remark| {
        let message = if same {
            String::new()
        } else {
            format!(": {}", escape(&remark.message))
        };
        format!("<li><code>{}</code>{message}</li>\n", escape(&remark.site))
    });
    let lines: String = lines.collect();
    let more = match count > MOST_LISTED {
        true => format!(
            "<li>and {} more, in report.json</li>\n",
            count - MOST_LISTED
        ),
        false => String::new(),
    };
    format!("<li><details><summary>{head}</summary><ul>\n{lines}{more}</ul></details></li>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alike_remarks_are_one() {
        let (text, numbers) = split("rank 12 of 1,024: 0.53.");
        assert_eq!(text, "rank \u{1} of \u{1}: \u{1}.");
        assert_eq!(numbers, ["12", "1,024", "0.53"]);
        let remark = |kind, site: &str, text: &str| Remark::new(kind, site, text);
        let all = [
            remark(RemarkKind::Passed, "a", "rank 12"),
            remark(RemarkKind::Missed, "b", "too small"),
            remark(RemarkKind::Passed, "c", "rank 7"),
        ];
        let groups = collect(&all);
        let seen: Vec<_> = groups
            .iter()
            .map(|g| (g.pattern.as_str(), g.remarks.len()))
            .collect();
        assert_eq!(seen, [("too small", 1), ("rank \u{1}", 2)]);
        assert_eq!(groups.last().map(common).as_deref(), Some("rank 7–12"));
    }
}
