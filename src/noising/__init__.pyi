from .api import Result as Result, Run as Run, load as load, train as train
from .data.augmentation import Augmentation as Augmentation, GeometricAugmentation as GeometricAugmentation
from .data.digits import Digits as Digits
from .data.ffhq64 import FFHQ64 as FFHQ64
from .data.image_data import ImageData as ImageData, Images as Images, Splits as Splits
from .data.image_folder import ImageFolder as ImageFolder
from .data.image_net64 import ImageNet64 as ImageNet64
from .data.torch_dataset import TorchDataset as TorchDataset
from .data.torchvision_data import CIFAR10 as CIFAR10, MNIST as MNIST, FashionMNIST as FashionMNIST
from .diffusion import grids as grids, times as times, weightings as weightings
from .diffusion.denoiser import Denoiser as Denoiser, Prediction as Prediction
from .diffusion.drawing import draw_images as draw_images
from .diffusion.gaussian import Gaussian as Gaussian
from .diffusion.guidance import Guided as Guided, autoguidance as autoguidance, classifier_free as classifier_free
from .diffusion.inversion import interpolate as interpolate, invert as invert
from .diffusion.levels import (
    Geometry as Geometry,
    NoiseLevel as NoiseLevel,
    Straight as Straight,
    VarianceExploding as VarianceExploding,
    VariancePreserving as VariancePreserving,
)
from .diffusion.likelihood.adaptive import Adaptive as Adaptive
from .diffusion.likelihood.decoders import (
    Decoder as Decoder,
    DiscretizedGaussian as DiscretizedGaussian,
    PlainGaussian as PlainGaussian,
    SoftmaxGaussian as SoftmaxGaussian,
    TanhDiscretizedGaussian as TanhDiscretizedGaussian,
)
from .diffusion.likelihood.dequantization import FlowLikelihood as FlowLikelihood
from .diffusion.likelihood.divergences import exact_trace as exact_trace, probed_trace as probed_trace
from .diffusion.likelihood.estimators import BoundEstimator as BoundEstimator, Exact as Exact, Stratified as Stratified
from .diffusion.likelihood.flow import flow_log_prob as flow_log_prob
from .diffusion.likelihood.meter import BoundEstimate as BoundEstimate, evaluate_bound as evaluate_bound
from .diffusion.likelihood.solvers import DormandPrince as DormandPrince, RungeKutta4 as RungeKutta4
from .diffusion.likelihood.terms import Bound as Bound, ModelTerms as ModelTerms, variational_bound as variational_bound
from .diffusion.noise_labels import (
    DiscreteStep as DiscreteStep,
    LogSNR as LogSNR,
    NoiseLabel as NoiseLabel,
    QuarterLogSigma as QuarterLogSigma,
    ScaledLogSNR as ScaledLogSNR,
    ScaledTime as ScaledTime,
)
from .diffusion.objectives import (
    ContinuousBound as ContinuousBound,
    Hybrid as Hybrid,
    Objective as Objective,
    Regression as Regression,
    UncertaintyWeighted as UncertaintyWeighted,
    VariationalBound as VariationalBound,
    WeightedBound as WeightedBound,
    WeightedLoss as WeightedLoss,
)
from .diffusion.parameterizations import (
    CleanImage as CleanImage,
    Epsilon as Epsilon,
    Flow as Flow,
    Karras as Karras,
    Parameterization as Parameterization,
    Score as Score,
    Velocity as Velocity,
)
from .diffusion.recipe import Recipe as Recipe
from .diffusion.samplers import (
    DDIM as DDIM,
    DPMPP2M as DPMPP2M,
    Ancestral as Ancestral,
    Heun as Heun,
    PathPoint as PathPoint,
    Sampler as Sampler,
    StepWeights as StepWeights,
    WeightedSum as WeightedSum,
)
from .diffusion.schedules import (
    VPSDE as VPSDE,
    Cosine as Cosine,
    GreyLevelLogSNR as GreyLevelLogSNR,
    LearnedLine as LearnedLine,
    LearnedLogSNR as LearnedLogSNR,
    LinearBeta as LinearBeta,
    LinearLogSNR as LinearLogSNR,
    LogLinearSigma as LogLinearSigma,
    RectifiedFlow as RectifiedFlow,
    ResolutionShift as ResolutionShift,
    ScaledLinearBeta as ScaledLinearBeta,
    Schedule as Schedule,
    SigmoidAlphaBar as SigmoidAlphaBar,
    SigmoidBeta as SigmoidBeta,
    TabulatedBeta as TabulatedBeta,
    ZeroTerminalSNR as ZeroTerminalSNR,
)
from .diffusion.times import (
    BatchSlot as BatchSlot,
    LogitNormal as LogitNormal,
    LogNormal as LogNormal,
    LossAware as LossAware,
    LowDiscrepancy as LowDiscrepancy,
    TimeSampler as TimeSampler,
)
from .diffusion.trajectories import (
    forward_log_prob as forward_log_prob,
    forward_trajectory as forward_trajectory,
    reverse_log_prob as reverse_log_prob,
    trajectory_bound as trajectory_bound,
)
from .diffusion.transitions import Chain as Chain, Transition as Transition
from .diffusion.variances import (
    FixedLarge as FixedLarge,
    FixedSmall as FixedSmall,
    Learned as Learned,
    LearnedRange as LearnedRange,
    Optimal as Optimal,
    ReverseVariance as ReverseVariance,
)
from .errors import ConfigError as ConfigError, UsageError as UsageError
from .experiment import Experiment as Experiment
from .metrics.quality import ImageMetric as ImageMetric, QualityMetric as QualityMetric
from .models.dit import DiT as DiT
from .models.edm2 import EDM2UNet as EDM2UNet
from .models.jit import JiT as JiT
from .models.song_unet import SongUNet as SongUNet
from .models.unet import UNet as UNet
from .models.uvit import UViT as UViT
from .models.vdm_unet import VDMUNet as VDMUNet
from .randomness import Streams as Streams
from .runs.declarations import Declaration as Declaration
from .training.ema import EMA as EMA, HalfLifeEMA as HalfLifeEMA, PowerFunctionEMA as PowerFunctionEMA
from .training.module import DiffusionModule as DiffusionModule
