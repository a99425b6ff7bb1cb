//! The model as stateright sees it.

use std::sync::Arc;

use stateright::{Model, Property};

use super::actions::Action;
use super::properties;
use super::reached::Reached;
use super::settling::Memory;
use super::world::{Rules, World};

/// Every run of a few processes from one beginning.
#[derive(Clone, Debug)]
pub(super) struct Takeovers {
    pub(super) rules: Rules,
    pub(super) beginning: World,
    /// What is known of how a state ends. No part of a state.
    pub(super) memory: Arc<Memory>,
    /// Properties about what the run reaches.
    pub(super) reached: Vec<Reached>,
}

impl Takeovers {
    pub(super) fn new(rules: Rules, beginning: World) -> Takeovers {
        Takeovers { rules, beginning, memory: Arc::default(), reached: Vec::new() }
    }
}

impl Model for Takeovers {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.beginning.clone()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        world.actions(&self.rules, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.apply(&self.rules, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Takeovers>> {
        let reached = self.reached.iter().map(|(name, condition)| Property::sometimes(name, *condition));
        properties::properties().into_iter().chain(reached).collect()
    }
}
