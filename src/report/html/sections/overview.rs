//! What matters most, in words and in figures.

use crate::eval::Evaluation;
use crate::eval::report::ModelScore;
use crate::pass::RemarkKind;
use crate::report::groups::total;
use crate::report::html::markup::{escape, section};
use crate::report::html::{Page, nothing};
use crate::report::{ModelReport, human};

/// The section.
pub fn render(page: &Page<'_>) -> String {
    let report = page.report;
    let mut body = format!("<p class=\"lead\">{}</p>\n", summary(page));
    body.push_str("<div class=\"cards\">\n");
    for card in cards(page) {
        body.push_str(&card);
    }
    body.push_str("</div>\n<h3>Pipeline</h3>\n");
    body.push_str(&match report.pipeline.is_empty() {
        true => nothing("No pipeline: the model was copied."),
        false => format!("<pre><code>{}</code></pre>\n", escape(&report.pipeline)),
    });
    section("overview", "Overview", "", &body)
}

/// The first whole candidate of an evaluation on text.
pub fn judged(evaluation: Option<&Evaluation>) -> Option<&ModelScore> {
    match evaluation {
        Some(Evaluation::Text(text)) => text.models.iter().find(|m| m.without.is_empty()),
        _ => None,
    }
}

/// `1 matrix`, `210 matrices`.
pub fn matrices(count: usize) -> String {
    human::plural(count, "matrix").replace("matrixs", "matrices")
}

/// The run in a few sentences; HTML.
fn summary(page: &Page<'_>) -> String {
    let report = page.report;
    let (all, own) = (&report.model_totals, &report.rewritten_totals);
    let sum = total(&report.sites);
    let mut out = match report.sites.is_empty() {
        true => "No matrix was rewritten. ".to_string(),
        false => format!(
            "{} with {} parameters were rewritten, at {:.2} bits per weight and a relative error of {} on \
             average. ",
            matrices(report.sites.len()),
            human::count(own.params_before),
            own.bits_per_weight,
            human::error(sum.error()),
        ),
    };
    out.push_str(&format!(
        "The model went from {} to {}, {} of its size{}. ",
        human::size(all.bytes_before),
        human::size(all.bytes_after),
        percent(all.bytes_after, all.bytes_before),
        ends(report),
    ));
    out.push_str(&quality(page));
    if report.reverted > 0 {
        let kept = matrices(usize::try_from(report.reverted).unwrap_or(usize::MAX));
        out.push_str(&format!(
            "{kept} would have become larger and stayed as the source has it. "
        ));
    }
    escape(out.trim_end())
}

fn ends(report: &ModelReport) -> String {
    let share = report.embeddings_and_head_percent;
    match share.is_finite() && share >= 10.0 {
        true => format!("; embeddings and head are {share:.0} % of what is left"),
        false => String::new(),
    }
}

fn quality(page: &Page<'_>) -> String {
    let Some(model) = judged(page.evaluation) else {
        return match page.evaluation {
            Some(_) => "Its outputs were compared with the original's. ".into(),
            None => {
                "It has not been judged on text: nothing here says how well it still predicts. "
                    .into()
            }
        };
    };
    let Some(against) = &model.against else {
        return format!("Its perplexity is {}. ", human::figure(model.perplexity, 3));
    };
    format!(
        "Its perplexity is {}, {} times the original's; it agrees with the original on the likeliest \
         token in {:.1} % of {} predictions, at a mean KL divergence of {} nats. ",
        human::figure(model.perplexity, 3),
        human::figure(against.perplexity_ratio, 3),
        100.0 * against.top1_agreement,
        predictions(page),
        human::error(against.kl.mean),
    )
}

fn predictions(page: &Page<'_>) -> usize {
    match page.evaluation {
        Some(Evaluation::Text(text)) => text.predictions,
        _ => 0,
    }
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

fn card(title: &str, value: &str, note: &str) -> String {
    format!(
        "<div><span>{}</span><b>{}</b><small>{}</small></div>\n",
        escape(title),
        escape(value),
        escape(note)
    )
}

fn cards(page: &Page<'_>) -> Vec<String> {
    let report = page.report;
    let (all, own) = (&report.model_totals, &report.rewritten_totals);
    let sum = total(&report.sites);
    let worst = report.sites.iter().map(|s| s.rel_error).fold(0.0, f64::max);
    let missed = report
        .remarks
        .iter()
        .filter(|r| r.kind == RemarkKind::Missed)
        .count();
    let mut cards = vec![
        card(
            "Size",
            &human::size(all.bytes_after),
            &format!(
                "{} before: {:.2}× smaller",
                human::size(all.bytes_before),
                all.ratio
            ),
        ),
        card(
            "Bits per weight",
            &format!("{:.2}", all.bits_per_weight),
            &format!(
                "of the whole model; {:.2} where rewritten",
                own.bits_per_weight
            ),
        ),
        card(
            "Relative error of weights",
            &human::error(sum.error()),
            &format!("on average where rewritten; worst {}", human::error(worst)),
        ),
    ];
    if let Some(model) = judged(page.evaluation) {
        let note = match &model.against {
            Some(a) => format!("{} × the original's", human::figure(a.perplexity_ratio, 4)),
            None => "without an original to compare with".into(),
        };
        cards.push(card(
            "Perplexity",
            &human::figure(model.perplexity, 3),
            &note,
        ));
        if let Some(against) = &model.against {
            let kl = &against.kl;
            let note = format!(
                "nats per token on average; 99 % below {}",
                human::error(kl.p99)
            );
            cards.push(card("KL divergence", &human::error(kl.mean), &note));
            let value = format!("{:.1} %", 100.0 * against.top1_agreement);
            cards.push(card("Same likeliest token", &value, "as the original's"));
        }
    }
    if let Some(Evaluation::Outputs(outputs)) = page.evaluation {
        let whole = outputs.models.iter().find(|m| m.without.is_empty());
        for output in whole.iter().flat_map(|m| &m.outputs).take(2) {
            let title = format!("Cosine of {}", output.name);
            let note = format!("with the original's; worst {:.5}", output.cosine_worst);
            cards.push(card(&title, &format!("{:.5}", output.cosine_mean), &note));
        }
    }
    if all.flops_before > 0 {
        let share = 100.0 * all.flops_after as f64 / all.flops_before as f64;
        let note = format!(
            "{} before ({share:.0} %), linears only",
            human::count(all.flops_before)
        );
        cards.push(card(
            "FLOPs per token",
            &human::count(all.flops_after),
            &note,
        ));
    }
    let note = format!(
        "{missed} missed; {} matrices kept as they were",
        report.reverted
    );
    cards.push(card("Remarks", &report.remarks.len().to_string(), &note));
    cards
}
