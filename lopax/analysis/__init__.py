"""Opening the black box: what a meta-trained rule sees and does.

For coordinate-wise recurrent rules the tools of Maheswaranathan et al. (2020, arXiv
2011.02159): update functions, implicit schedule, state PCA, fixed points, momentum
modes, adaptation. For per-element networks: feature importance. For rules with Celo's
scheduler: its curves. For rules that start as a hand-made optimizer: what was learned
on top of it. For every rule: directions compared with hand-made ones, the
response to one gradient, and what rescaling does. `lopax explain` writes it all on one
page.
"""

from __future__ import annotations

from lopax.analysis.adaptation import Adaptation, adaptation_curve
from lopax.analysis.directions import REFERENCES, Directions, compare_directions
from lopax.analysis.elements import NamedInputs, element_net, has_element_net
from lopax.analysis.fixed_points import FixedPoints, find_fixed_points
from lopax.analysis.importance import Importance, feature_importance
from lopax.analysis.learned_part import (
    against_start,
    has_hand_made_start,
    worth_of_parts,
)
from lopax.analysis.linearise import (
    HeavyBall,
    Linearisation,
    Modes,
    gradient_descent_optimum,
    heavy_ball_optimum,
    linearise,
    modes,
)
from lopax.analysis.pca import StatePCA, state_pca
from lopax.analysis.recurrent import (
    RecurrentView,
    Visited,
    momentum_view,
    visit,
)
from lopax.analysis.responses import (
    GradientResponse,
    Invariances,
    gradient_response,
    invariances,
)
from lopax.analysis.schedule import ImplicitSchedule, implicit_schedule
from lopax.analysis.scheduler_curves import (
    has_scheduler,
    loss_step_response,
    multipliers,
    typical_losses,
)
from lopax.analysis.slices import (
    UpdateFunction,
    knee,
    saturation,
    share_beyond,
    update_function,
)
from lopax.analysis.views import is_recurrent, recurrent_view

__all__ = [
    "REFERENCES",
    "Adaptation",
    "Directions",
    "FixedPoints",
    "GradientResponse",
    "HeavyBall",
    "ImplicitSchedule",
    "Importance",
    "Invariances",
    "Linearisation",
    "Modes",
    "NamedInputs",
    "RecurrentView",
    "StatePCA",
    "UpdateFunction",
    "Visited",
    "adaptation_curve",
    "against_start",
    "compare_directions",
    "element_net",
    "feature_importance",
    "find_fixed_points",
    "gradient_descent_optimum",
    "gradient_response",
    "has_element_net",
    "has_hand_made_start",
    "has_scheduler",
    "heavy_ball_optimum",
    "implicit_schedule",
    "invariances",
    "is_recurrent",
    "knee",
    "linearise",
    "loss_step_response",
    "modes",
    "momentum_view",
    "multipliers",
    "recurrent_view",
    "saturation",
    "share_beyond",
    "state_pca",
    "typical_losses",
    "update_function",
    "visit",
    "worth_of_parts",
]
