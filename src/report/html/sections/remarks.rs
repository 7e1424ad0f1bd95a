//! What passes said, alike remarks together.

use std::collections::HashMap;

use crate::pass::{Remark, RemarkKind};
use crate::report::html::markup::{escape, section};
use crate::report::html::{Page, nothing};

/// Groups that are shown.
const MOST_GROUPS: usize = 150;
/// Remarks that are listed of a group.
const MOST_LISTED: usize = 60;

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
    let intro = "Missed is what a pass was asked for and did not do, and why. Remarks that differ in their numbers \
                 only are one line; # stands for the number.";
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
        let pattern = pattern(&remark.message);
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

/// A message with every number replaced.
fn pattern(message: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in message.chars() {
        let part = c.is_ascii_digit() || (inside && matches!(c, '.' | ','));
        if part && !inside {
            out.push('#');
        }
        if !part {
            out.push(c);
        }
        inside = part;
    }
    out
}

fn item(group: &Group<'_>) -> String {
    let kind = group.kind.name();
    let count = group.remarks.len();
    let first = group.remarks.first().map_or("", |r| r.message.as_str());
    let same = group.remarks.iter().all(|r| r.message == first);
    let message = if same { first } else { group.pattern.as_str() };
    let head = format!(
        "<b class=\"kind {kind}\">{kind}</b> <code>{}</code> {} <span class=\"count\">{}</span>",
        escape(group.pass),
        escape(message),
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
        assert_eq!(
            pattern("rank 12 of 1,024: 0.53 kept"),
            "rank # of #: # kept"
        );
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
        assert_eq!(seen, [("too small", 1), ("rank #", 2)]);
    }
}
