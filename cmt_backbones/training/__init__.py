"""What a run adds: layer decay, finite losses, resuming, interruption. Importing it registers their names."""
from .finite_loss import FiniteLossHook
from .interruption import SaveOnSigterm
from .layer_decay import LayerDecayOptimWrapperConstructor
from .resuming import ResumableRandomness

__all__ = ['FiniteLossHook', 'LayerDecayOptimWrapperConstructor', 'ResumableRandomness', 'SaveOnSigterm']
