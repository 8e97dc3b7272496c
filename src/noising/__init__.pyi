from .api import Result as Result
from .api import Run as Run
from .api import load as load
from .api import train as train
from .data.digits import Digits as Digits
from .data.image_data import ImageData as ImageData
from .data.image_data import Images as Images
from .data.image_data import Splits as Splits
from .data.image_folder import ImageFolder as ImageFolder
from .data.torchvision_data import CIFAR10 as CIFAR10
from .data.torchvision_data import MNIST as MNIST
from .data.torchvision_data import FashionMNIST as FashionMNIST
from .diffusion import grids as grids
from .diffusion import times as times
from .diffusion import weightings as weightings
from .diffusion.denoiser import Denoiser as Denoiser
from .diffusion.denoiser import Prediction as Prediction
from .diffusion.drawing import draw_images as draw_images
from .diffusion.gaussian import Gaussian as Gaussian
from .diffusion.guidance import Guided as Guided
from .diffusion.guidance import autoguidance as autoguidance
from .diffusion.guidance import classifier_free as classifier_free
from .diffusion.inversion import interpolate as interpolate
from .diffusion.inversion import invert as invert
from .diffusion.levels import (
    Geometry as Geometry,
)
from .diffusion.levels import (
    NoiseLevel as NoiseLevel,
)
from .diffusion.levels import (
    Straight as Straight,
)
from .diffusion.levels import (
    VarianceExploding as VarianceExploding,
)
from .diffusion.levels import (
    VariancePreserving as VariancePreserving,
)
from .diffusion.likelihood.adaptive import Adaptive as Adaptive
from .diffusion.likelihood.decoders import (
    Decoder as Decoder,
)
from .diffusion.likelihood.decoders import (
    DiscretizedGaussian as DiscretizedGaussian,
)
from .diffusion.likelihood.decoders import (
    PlainGaussian as PlainGaussian,
)
from .diffusion.likelihood.decoders import (
    SoftmaxGaussian as SoftmaxGaussian,
)
from .diffusion.likelihood.decoders import (
    TanhDiscretizedGaussian as TanhDiscretizedGaussian,
)
from .diffusion.likelihood.dequantization import FlowLikelihood as FlowLikelihood
from .diffusion.likelihood.estimators import BoundEstimator as BoundEstimator
from .diffusion.likelihood.estimators import Exact as Exact
from .diffusion.likelihood.estimators import Stratified as Stratified
from .diffusion.likelihood.flow import flow_log_prob as flow_log_prob
from .diffusion.likelihood.meter import BoundEstimate as BoundEstimate
from .diffusion.likelihood.meter import evaluate_bound as evaluate_bound
from .diffusion.likelihood.solvers import DormandPrince as DormandPrince
from .diffusion.likelihood.solvers import RungeKutta4 as RungeKutta4
from .diffusion.likelihood.terms import Bound as Bound
from .diffusion.likelihood.terms import ModelTerms as ModelTerms
from .diffusion.likelihood.terms import variational_bound as variational_bound
from .diffusion.noise_labels import (
    DiscreteStep as DiscreteStep,
)
from .diffusion.noise_labels import (
    LogSNR as LogSNR,
)
from .diffusion.noise_labels import (
    NoiseLabel as NoiseLabel,
)
from .diffusion.noise_labels import (
    QuarterLogSigma as QuarterLogSigma,
)
from .diffusion.noise_labels import (
    ScaledLogSNR as ScaledLogSNR,
)
from .diffusion.noise_labels import (
    ScaledTime as ScaledTime,
)
from .diffusion.objectives import (
    ContinuousBound as ContinuousBound,
)
from .diffusion.objectives import (
    Hybrid as Hybrid,
)
from .diffusion.objectives import (
    Objective as Objective,
)
from .diffusion.objectives import (
    Regression as Regression,
)
from .diffusion.objectives import (
    VariationalBound as VariationalBound,
)
from .diffusion.objectives import (
    WeightedBound as WeightedBound,
)
from .diffusion.parameterizations import (
    CleanImage as CleanImage,
)
from .diffusion.parameterizations import (
    Epsilon as Epsilon,
)
from .diffusion.parameterizations import (
    Flow as Flow,
)
from .diffusion.parameterizations import (
    Karras as Karras,
)
from .diffusion.parameterizations import (
    Parameterization as Parameterization,
)
from .diffusion.parameterizations import (
    Score as Score,
)
from .diffusion.parameterizations import (
    Velocity as Velocity,
)
from .diffusion.recipe import Recipe as Recipe
from .diffusion.samplers import (
    DDIM as DDIM,
)
from .diffusion.samplers import (
    DPMPP2M as DPMPP2M,
)
from .diffusion.samplers import (
    Ancestral as Ancestral,
)
from .diffusion.samplers import (
    Heun as Heun,
)
from .diffusion.samplers import (
    Sampler as Sampler,
)
from .diffusion.schedules import (
    Cosine as Cosine,
)
from .diffusion.schedules import (
    LearnedLogSNR as LearnedLogSNR,
)
from .diffusion.schedules import (
    LinearBeta as LinearBeta,
)
from .diffusion.schedules import (
    LinearLogSNR as LinearLogSNR,
)
from .diffusion.schedules import (
    LogLinearSigma as LogLinearSigma,
)
from .diffusion.schedules import (
    RectifiedFlow as RectifiedFlow,
)
from .diffusion.schedules import (
    ResolutionShift as ResolutionShift,
)
from .diffusion.schedules import (
    ScaledLinearBeta as ScaledLinearBeta,
)
from .diffusion.schedules import (
    Schedule as Schedule,
)
from .diffusion.schedules import (
    SigmoidAlphaBar as SigmoidAlphaBar,
)
from .diffusion.schedules import (
    SigmoidBeta as SigmoidBeta,
)
from .diffusion.schedules import (
    TabulatedBeta as TabulatedBeta,
)
from .diffusion.schedules import (
    ZeroTerminalSNR as ZeroTerminalSNR,
)
from .diffusion.times import (
    BatchSlot as BatchSlot,
)
from .diffusion.times import (
    LogitNormal as LogitNormal,
)
from .diffusion.times import (
    LogNormal as LogNormal,
)
from .diffusion.times import (
    LossAware as LossAware,
)
from .diffusion.times import (
    LowDiscrepancy as LowDiscrepancy,
)
from .diffusion.times import (
    TimeSampler as TimeSampler,
)
from .diffusion.trajectories import (
    forward_log_prob as forward_log_prob,
)
from .diffusion.trajectories import (
    forward_trajectory as forward_trajectory,
)
from .diffusion.trajectories import (
    reverse_log_prob as reverse_log_prob,
)
from .diffusion.trajectories import (
    trajectory_bound as trajectory_bound,
)
from .diffusion.transitions import Chain as Chain
from .diffusion.transitions import Transition as Transition
from .diffusion.variances import (
    FixedLarge as FixedLarge,
)
from .diffusion.variances import (
    FixedSmall as FixedSmall,
)
from .diffusion.variances import (
    Learned as Learned,
)
from .diffusion.variances import (
    LearnedRange as LearnedRange,
)
from .diffusion.variances import (
    Optimal as Optimal,
)
from .diffusion.variances import (
    ReverseVariance as ReverseVariance,
)
from .errors import ConfigError as ConfigError
from .errors import UsageError as UsageError
from .experiment import Experiment as Experiment
from .metrics.quality import ImageMetric as ImageMetric
from .metrics.quality import QualityMetric as QualityMetric
from .models.unet import UNet as UNet
from .randomness import Streams as Streams
from .training.ema import EMA as EMA
from .training.module import DiffusionModule as DiffusionModule
