//! What a file of statistics holds, as a table.

use crate::calib::Summary;
use crate::cli::table::Table;
use crate::report::human;
use std::path::Path;

/// The summary as text.
pub fn render(path: &Path, summary: &Summary) -> String {
    let mut out = format!("{}: inputs of {}\n", path.display(), summary.model.name);
    for run in &summary.runs {
        let names: Vec<&str> = run.data.iter().map(|file| file.name.as_str()).collect();
        let bos = match run.protocol.bos {
            Some(token) => format!("BOS (token {token}) in front of each"),
            None => "no BOS".to_string(),
        };
        let windows = match run.protocol.lines {
            true => format!(
                "{} of up to {} tokens",
                human::plural(run.windows, "line"),
                run.protocol.context
            ),
            false => format!(
                "{} of {} tokens, {bos}",
                human::plural(run.windows, "window"),
                run.protocol.context
            ),
        };
        out += &format!(
            "on {}: {windows}, {} tokens in all\n",
            names.join(", "),
            run.tokens
        );
    }
    let mut table = Table::new(&[
        "input of",
        "sites>",
        "width>",
        "tokens>",
        "dead inputs>",
        "mean x²>",
        "peak/mean>",
        "short>",
    ]);
    for role in &summary.roles {
        table.row([
            role.role.clone(),
            role.sites.to_string(),
            role.width.to_string(),
            role.tokens.to_string(),
            role.dead.to_string(),
            format!("{:.4e}", role.mean_square),
            format!("{:.1}", role.peak),
            role.short.to_string(),
        ]);
    }
    out + &table.render()
}

/// What the user should know.
pub fn warnings(summary: &Summary) -> Vec<String> {
    let mut out = Vec::new();
    let short: usize = summary.roles.iter().map(|r| r.short).sum();
    if short > 0 {
        out.push(format!(
            "{} saw fewer tokens than it has inputs: sums without full rank; more text is better",
            human::plural(short, "site")
        ));
    }
    if summary.short_experts > 0 {
        out.push(format!(
            "{} got fewer tokens than inner inputs; the average over all experts is added to theirs",
            human::plural(summary.short_experts, "expert")
        ));
    }
    if summary.unused_experts > 0 {
        let experts = human::plural(summary.unused_experts, "expert");
        out.push(format!("{experts} got no token at all"));
    }
    if !summary.without.is_empty() {
        out.push(format!(
            "nothing is known of the inputs of {}",
            summary.without.join(", ")
        ));
    }
    out
}
