"""Every private TensorFlow and Keras name that tfaccel uses, each with its reason.

Seen with TensorFlow 2.21 and Keras 3.15. `tests/distribute/test_private.py` and
`tests/model_parallel/test_private.py` watch each one: when a release moves a name, they report
which, and the module here that holds it is the only place to fix. The modules are named after what
they reach into; callers write `_private.NAME`, wherever a name is.
"""

from tfaccel.distribute._private import (
    callers,
    datasets,
    keras_epochs,
    keras_files,
    keras_layers,
    keras_losses,
    keras_optimizers,
    keras_trainer,
    py_datasets,
    random_seeds,
    tf_build,
    tf_collectives,
    tf_functions,
    tf_graphs,
    tf_strategies,
    tf_values,
    tf_variables,
)
from tfaccel.distribute._private.callers import *  # noqa: F403
from tfaccel.distribute._private.datasets import *  # noqa: F403
from tfaccel.distribute._private.keras_epochs import *  # noqa: F403
from tfaccel.distribute._private.keras_files import *  # noqa: F403
from tfaccel.distribute._private.keras_layers import *  # noqa: F403
from tfaccel.distribute._private.keras_losses import *  # noqa: F403
from tfaccel.distribute._private.keras_optimizers import *  # noqa: F403
from tfaccel.distribute._private.keras_trainer import *  # noqa: F403
from tfaccel.distribute._private.py_datasets import *  # noqa: F403
from tfaccel.distribute._private.random_seeds import *  # noqa: F403
from tfaccel.distribute._private.tf_build import *  # noqa: F403
from tfaccel.distribute._private.tf_collectives import *  # noqa: F403
from tfaccel.distribute._private.tf_functions import *  # noqa: F403
from tfaccel.distribute._private.tf_graphs import *  # noqa: F403
from tfaccel.distribute._private.tf_strategies import *  # noqa: F403
from tfaccel.distribute._private.tf_values import *  # noqa: F403
from tfaccel.distribute._private.tf_variables import *  # noqa: F403

__all__: list[str] = []
__all__ += callers.__all__
__all__ += datasets.__all__
__all__ += keras_epochs.__all__
__all__ += keras_files.__all__
__all__ += keras_layers.__all__
__all__ += keras_losses.__all__
__all__ += keras_optimizers.__all__
__all__ += keras_trainer.__all__
__all__ += py_datasets.__all__
__all__ += random_seeds.__all__
__all__ += tf_build.__all__
__all__ += tf_collectives.__all__
__all__ += tf_functions.__all__
__all__ += tf_graphs.__all__
__all__ += tf_strategies.__all__
__all__ += tf_values.__all__
__all__ += tf_variables.__all__
