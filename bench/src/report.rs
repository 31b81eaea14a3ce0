//! Numbers for people: medians, quantiles, and one line per figure.

/// The middle one, or the mean of the middle two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    f64::midpoint(at(sorted.len().saturating_sub(1) / 2), at(sorted.len() / 2))
}

/// The quantile of this share.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
}

/// One figure.
pub fn figure(what: &str, value: &str) {
    println!("  {what:<58} {value}");
}

/// The title of the figures that follow.
pub fn heading(what: &str) {
    println!("\n{what}");
}

/// A rate and its share of the raw limit.
pub fn ratios(what: &str, ours: &[f64], raw: &[f64]) {
    let shares: Vec<f64> = ours.iter().zip(raw).map(|(ours, raw)| ours / raw * 100.0).collect();
    let all: Vec<String> = shares.iter().map(|share| format!("{share:.0}")).collect();
    let text =
        format!("{:.0}/s of {:.0}/s: {:.0} % (runs: {})", median(ours), median(raw), median(&shares), all.join(", "));
    figure(what, &text);
}
