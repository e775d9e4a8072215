//! Rules of ours in other chains than the plan's: of an earlier run that was told another `--chain`.
//!
//! Takes a plan; finds, counts and removes them. It makes no rule.

use super::{
    ProgramFailure,
    chain::{Chain, DOCKER_USER, FORWARD, INPUT, Program, failed},
    is_nowhere,
    program::{TIME_LIMIT, run},
    rule::{self, IpFamily, Listing, RulePlan, TABLE},
};
use crate::error::Error;

impl Program {
    /// Removes every rule of ours from other chains than the plan's.
    pub(super) fn remove_elsewhere(
        &self,
        operation: &'static str,
        plan: &RulePlan,
        family: IpFamily,
    ) -> Result<(), Error> {
        let sets = plan.sets(family);
        let text = self.every_chain(operation)?;
        let mut names: Vec<&str> =
            rule::elsewhere(&text, plan.chain().name, sets).map(|(chain, _)| chain).collect();
        names.dedup();
        for name in names {
            let chain = Chain { table: TABLE, name };
            let compare = |text: &str| Some(Listing::parse(text, chain, sets)?.compare(&[], &[]));
            match self.settle(operation, chain, compare) {
                Err(error) if is_nowhere(&error) => {}
                settled => drop(settled?),
            }
        }
        Ok(())
    }

    /// How many rules of ours there are, in whichever chain; with a `set`, how often they refer to it.
    pub(super) fn count(
        &self,
        operation: &'static str,
        plan: &RulePlan,
        family: IpFamily,
        set: Option<&str>,
    ) -> Result<usize, Error> {
        let (chain, sets) = (plan.chain(), plan.sets(family));
        let planned = self.look(operation, chain, |text| {
            let listing = Listing::parse(text, chain, sets)?;
            Some(set.map_or_else(|| listing.count(), |set| listing.references(set)))
        });
        let planned = match planned {
            Err(error) if is_nowhere(&error) => 0,
            counted => counted?,
        };
        let text = self.every_chain(operation)?;
        let is_meant =
            |words: &[String]| set.is_none_or(|set| words.iter().any(|word| word == set));
        let elsewhere = rule::elsewhere(&text, chain.name, sets);
        Ok(planned + elsewhere.filter(|(_, words)| is_meant(words)).count())
    }

    /// Lists every chain of the table. One that the program cannot read spoils that for all; then
    /// those that a rule of ours is most likely in.
    fn every_chain(&self, operation: &'static str) -> Result<String, Error> {
        let list = |chain: &[&str]| {
            let arguments = [&["-w", "5", "-t", TABLE, "-S"], chain].concat();
            run(&self.path, &arguments, None, TIME_LIMIT)
        };
        match list(&[]) {
            Ok(text) => Ok(text),
            Err(ProgramFailure::NoTable) => Ok(String::new()),
            Err(ProgramFailure::Exited { .. }) => {
                let likely = [INPUT, FORWARD, DOCKER_USER].into_iter();
                Ok(likely.filter_map(|name| list(&[name]).ok()).collect())
            }
            Err(failure) => Err(failed(operation, &self.path, failure)),
        }
    }
}
