"""All identities of a recipe."""

from collections.abc import Iterator

from noising.diffusion.recipe import Recipe
from noising.diffusion.samplers import Sampler
from noising.diffusion.transitions import Chain
from noising.verification.gaussian_data import bound_identities
from noising.verification.identity import Identity
from noising.verification.learning import learning_identities
from noising.verification.sampling import decoder_identities, sampler_identities
from noising.verification.schedule import chain_identities, schedule_identities, variance_identities


def identities(recipe: Recipe, sampler: Sampler, timesteps: int) -> Iterator[Identity]:
    """Check all identities of a recipe on a chain of T steps, and of a sampler with it."""
    chain = Chain.uniform(recipe.schedule, timesteps)
    yield from schedule_identities(recipe.schedule)
    yield from chain_identities(chain)
    yield from variance_identities(recipe.variance, chain)
    yield from learning_identities(recipe, timesteps)
    yield from bound_identities(recipe, chain)
    yield from decoder_identities(recipe.decoder, chain)
    yield from sampler_identities(sampler, recipe)
