"""Every setting of a run, with its default. There are no hidden options.

Change one with `--config.key=value`; write a file with a `get_config` like this
one and pass `--config=FILE` for a study of your own.
"""

from collections.abc import Mapping
import difflib
import math
from typing import Any

from ml_collections import ConfigDict

from hmm_jax.types import InputError


def get_config() -> ConfigDict:
  """Returns the defaults: FedAvg on scikit-learn's digits, in 20 skewed clients."""
  config = ConfigDict()

  # What is trained.
  config.name = ''  # of the run in tables and of its folder; '': the algorithm's
  config.algorithm = 'fedavg'  # one of CHOICES below
  # digits, synthetic, crisismmd, npz:PATH, text:PATH, or a prepared TFDS set
  config.dataset = 'digits'
  # Of TFDS, '' is its default, ~/tensorflow_datasets; or of the release of CrisisMMD, '' is
  # ~/tensorflow_datasets/crisismmd.
  config.data_dir = ''
  config.subset = 1.0  # share of its rows to use, drawn by partition.seed
  config.model = 'mlp'  # mlp cnn resnet vgg16 lstm fusion
  config.normalise = 'standard'  # standard none
  config.augment = 'none'  # none crop_flip
  config.compute_dtype = 'float32'  # float32 bfloat16; parameters stay float32

  # How long, and how often.
  config.clients = 20  # 0: as many as the data has natural clients
  config.participation = 10  # clients a round; 0: all (gossip, centralised: always all)
  config.rounds = 100
  config.eval_every = 10  # rounds between evaluations and checkpoints
  config.eval_batch = 512
  config.seed = 0  # the first of the training seeds
  config.seeds = 3  # how many
  config.seed_map = 'in_turn'  # in_turn together
  config.stop = ConfigDict({
      'patience': 0,  # evaluations without a better round on validation; 0: never stop
  })
  config.selection = 'accuracy'  # accuracy loss: what says which round is best on validation
  config.keep_best = False  # also keep the states of that round
  config.keep = 2  # checkpoints
  config.tensorboard = False  # event files in workdir/events
  config.references = ''  # also run, for comparison: any of iid,linear,local
  # Also run, each with settings of its own: 'NAME key=value key=value'.
  config.variants = ()

  # Where it runs. Results do not depend on it, up to float rounding.
  config.mapper = 'auto'  # auto map vmap sharded
  config.chunk = 0  # clients vectorised at a time by vmap; 0: all

  # Who holds which data.
  config.partition = ConfigDict({
      # iid dirichlet shards clusters quantity natural domain resample
      'kind': 'dirichlet',
      'alpha': 0.1,  # concentration: small is skewed (dirichlet, quantity, resample)
      'shards': 2,  # classes a client (shards)
      'clusters': 5,  # of clients (clusters)
      'classes_per_cluster': 3,
      'cluster_alpha': 10.0,  # concentration of a class over its owners (clusters)
      'size': 0,  # rows a client (resample); 0: rows / clients
      'min_size': 10,  # rows a client, at least (dirichlet, quantity)
      'seed': 0,
      'validation': 0.1,  # share of each client's rows held out
      'test': 0.1,  # not used where test_rows is alike
      # own: these; alike: the global test rows, dealt as the training rows were; pooled:
      # these, after the set's own test split has joined the rows to deal.
      'test_rows': 'own',
  })

  # Centralised rows, in none of the clients' hands.
  config.server = ConfigDict({
      'size': -1,  # rows; -1: 200 where the algorithm learns on them, else none
      # held_out: of the training rows; domain:N: of that domain, which no client gets;
      # or the name of another data set.
      'source': 'held_out',
      'held_out': 0.2,  # share of the server's rows to judge by, not to learn from
      'noise': 0.0,  # share of the server's labels that are wrong
      'seed': 0,
      # labels: of the clients' task; head: of another task, with a head of its own; distil: the
      # clients' predictions; entropy: none, but confidence. What the rows teach.
      'surrogate': 'labels',
      'steps': 100,  # minibatches a round: of a search, or of training
      'batch': 50,
      'lr': 0.05,  # of SGD, where the server trains
  })

  # Clients whose training and validation rows are bad; drawn by partition.seed.
  config.corrupt = ConfigDict({
      # none; symmetric: another label; pairwise: the next one; random: any; pixels: noisy
      # inputs; labels:PATH: the labels y of an .npz file, one a training row as loaded.
      'kind': 'none',
      'clients': 0.0,  # share of the clients
      # Chance of a row; pixels: standard deviation of the noise, of uint8 images on the
      # scale 0..1, of floating inputs in units of each feature's own.
      'rate': 0.5,
  })

  # What a client does in a round.
  config.local = ConfigDict({
      'epochs': 5,
      'steps': 0,  # above 0: so many steps instead of epochs
      'batch': 20,
      'optimizer': 'sgd',  # sgd adamw
      'lr': 0.05,
      'momentum': 0.0,
      'weight_decay': 0.0,
      'clip': 0.0,  # global gradient norm; 0: no clipping
      'clip_value': 0.0,  # of each entry of the gradient; 0: no clipping
      'label_smoothing': 0.0,
      'prox': 0.0,  # pull towards the round's start; 0: none
  })

  # After any algorithm with a global model: each client trains it on, at evaluations only.
  config.fine_tune = ConfigDict({
      'epochs': 0,  # 0: it does not
      'lr': 0.0,  # 0: local.lr
  })

  # Each algorithm's own.
  config.fedavg = ConfigDict({'weights': 'size'})  # size uniform
  config.fedprox = ConfigDict({'mu': 0.01, 'weights': 'size'})
  config.fedopt = ConfigDict({
      'optimizer': 'adam',  # of optax; it gets those of the settings below that it takes
      'lr': 0.01,
      'momentum': 0.9,
      'b1': 0.9,
      'b2': 0.99,
      'eps': 1e-3,
      'weights': 'size',
  })
  config.scaffold = ConfigDict({'server_lr': 1.0})
  config.moon = ConfigDict({'mu': 1.0, 'tau': 0.5})  # weight and temperature of the contrast
  config.fedgen = ConfigDict({
      'alpha': 10.0,  # weight of generated features at the clients
      'decay': 0.98,  # of alpha and of the rate, a round
      'steps': 50,  # of the generator, a round
      'batch': 32,  # features generated at a time
      'lr': 3e-4,  # of Adam
      'weight_decay': 0.01,
      'hidden': 256,
      'noise': 32,
  })
  config.clusamp = ConfigDict({'order': 'size'})  # size similarity: what makes clusters
  config.fedmr = ConfigDict({  # `participation` is the number of slots
      'granularity': 'tensor',  # tensor layer segment: what is shuffled as one
      'segments': 4,  # of the list of tensors (segment); 1: whole models change slots
      'first_stage': 0,  # rounds of plain averaging before
      'shuffle': 'all',  # all probability band: which units, instead of averaging them
      'frozen': 1.0,  # share of the run until all are (probability, band)
      'dropout': 0.0,  # chance that a slot's model does not come back
  })
  config.fedcross = ConfigDict({
      'collaborator': 'lowest',  # in_order lowest highest, in cosine similarity
      'alpha': 0.99,  # what a model keeps of itself
  })
  config.ifca = ConfigDict({'models': 3})
  config.fesem = ConfigDict({'models': 3})
  config.fedem = ConfigDict({'models': 3})
  config.ditto = ConfigDict({'lam': 1.0})  # pull of the clients' models to the global one
  config.apfl = ConfigDict({
      'alpha': 0.5,  # the first share of a client's own model
      'alpha_lr': 0.05,
  })
  config.fedrep = ConfigDict({'head_epochs': 10})  # before the trunk's local.epochs
  config.pfedme = ConfigDict({
      'lam': 15.0,  # pull of the clients' models to the global one
      'inner_steps': 5,  # on one minibatch
      'personal_lr': 0.1,  # of those steps
      'beta': 1.0,  # the server's step towards the mean
  })
  config.fedmerge = ConfigDict({
      'models': 5,  # global ones
      'start': 'different',  # different; same, for one model only
      'scope': 'head',  # head all: the parameters in the weights' inner product
      'weight_step': 'max_normalised',  # max_normalised plain, or an optimiser of optax
      'weight_lr': 0.01,
      'normalise': 'column',  # column none: the weights of the clients' updates
      'mu': 0.02,  # proximal pull towards the merge; 0.01 in the released code, without the 1/2
      'newcomers': 0,  # the last clients, who join after the run and learn their weights only
      'newcomer_rounds': 20,
  })
  config.feddle = ConfigDict({
      'atlas': 50,  # slots for updates; no more than clients are used
      'normalise': 'whole',  # whole layer none: what of an update gets the median's length
      'coefficients': 'global',  # global layer: one for an update, or one for each of its layers
      'search': 'adam',  # evolution, none (federated averaging), or an optimiser of optax
      'lr': 0.05,  # of that optimiser, falling along a cosine
      'sigma': 0.05,  # first step length (evolution)
      'population': 16,  # (evolution)
      'pull': 0.0,  # towards the average: pull/2 |c - average|^2
      'constraint': 'none',  # none convex box: on the updates' weights
      'bound': 1.0,  # box: from 0 to this
      'fallback': 'held_out',  # held_out none: to the average, unless rows held out say better
      'evict': 'oldest',  # oldest worst: who leaves a full atlas
      'strikes': 5,  # rounds in a row with a negative score, then the worst is dropped; 0: never
      'memory': 0.9,  # of the score, a moving average of the coefficients
      'tau_max': 0,  # rounds that an update may travel; 0: none
      'statistics': 'average',  # average server: BatchNorm's, or estimated on the server's rows
  })
  config.feddf = ConfigDict({'lr': 1e-3})  # of Adam, falling along a cosine
  config.learned_soup = ConfigDict({'lr': 0.05})  # of AdamW on the weights
  config.adamerging = ConfigDict({'lr': 1e-3})  # of Adam on the layers' weights
  config.gossip = ConfigDict({
      # pull matching; ring torus hypercube star complete erdos_renyi regular edges:PATH;
      # exponential one_peer_exponential base
      'topology': 'pull',
      'weights': 'metropolis',  # metropolis laplacian uniform, on an undirected graph
      'degree': 4,  # of a regular graph; k of base, the Base-(k+1) graph
      'edge_probability': 0.3,  # erdos_renyi
      'graph_seed': 0,  # erdos_renyi regular
      # How likely an agent (pull matching), or everybody at once, talks in a round.
      'rate': 0.2,
      # Pieces over that rate: constant:R linear:A:B cosine:A:B dense, each with @FROM:TO,
      # such as 'constant:1@150:' (a switch at round 150) or 'dense@80:90,dense@180:190'.
      'schedule': '',
      'start': 'different',  # different same: the agents' initial models
      'statistics': 'mixed',  # mixed kept: BatchNorm's, while gossiping
      'final_merge': 'uniform',  # none uniform TOPOLOGY:ROUNDS
      'merged_statistics': 'recalibrated',  # recalibrated averaged
      'merge_data': 'train',  # train validation: all agents' rows, to recalibrate on
      'merge_batches': 32,  # of so many random rows each as local.batch
  })

  config.one_shot = ConfigDict({'every': 0})  # rounds between merges (merging, dmm); 0: at the end
  config.merging = ConfigDict({
      'method': 'average',  # by rows; or one of hmm_jax/merging/operators.py
      'settings': (),  # of the method, such as ('density=0.1',)
      'match': 'none',  # none weights activations: what brings units into one order before
      'rows': 'validation',  # train validation: the clients' own, where data is needed
      'batches': 8,  # of them, for each client
      'batch': 32,
      'statistics': 'pooled',  # pooled recalibrated repaired: the merged model's, or its units'
  })
  config.dmm = ConfigDict({
      'threshold': 'mean',  # cosine that all pairs of the core reach; mean: that over all pairs
      'merge': 'mean',  # mean matching ties: of the core
      'buffers': 'pooled',  # pooled core: BatchNorm's, of all models or averaged over the core
      'inputs': 'inverted',  # inverted noise real none: what the divergent models are distilled on
      'whose': 'merged',  # merged each: whose statistics are inverted
      'batch': 256,  # inputs that are inverted together
      'batches': 4,  # of them; of each model, where each is inverted
      'augment': 'shift_flip',  # shift_flip none: of images, in inversion and distillation
      'shift': -1,  # pixels, at most; -1: a sixteenth of the side, rounded up
      'teachers': 'divergent',  # divergent everybody
      'words': 'counts',  # counts equal: a teacher's word on a class, by its rows of it or not
      'order': 'joint',  # joint in_turn
      'steps': 500,  # of Adam
      'distil_batch': 64,
      'lr': 1e-3,
      'temperature': 1.0,
      'keep': 0.0,  # weight of what the merged model said before
      'after': 'frozen',  # frozen re_estimated: the student's statistics
  })
  config.inversion = ConfigDict({
      'steps': 2000,  # of Adam
      'lr': 0.1,  # falling along a cosine
      'labels': 0.0,  # weights beside the statistics: cross-entropy with labels drawn,
      'variation': 0.0,  # total variation,
      'length': 0.0,  # length
  })

  # Each model's own.
  config.mlp = ConfigDict({'hidden': (128,)})  # () is a linear model
  config.cnn = ConfigDict({'size': 'lenet'})  # lenet pfllib small pfl
  config.resnet = ConfigDict({'size': '9-narrow', 'norm': 'batch'})  # 9-narrow 18 20
  config.vgg16 = ConfigDict({'norm': 'batch'})  # batch group layer none
  config.lstm = ConfigDict({'embedding': 8, 'hidden': (256, 256)})
  config.fusion = ConfigDict({
      'channels': (16, 32, 64),  # of the convolutions of the image branch
      'embedding': 128,  # width of the text branch
      'hidden': 128,  # of the layer after both
  })

  # Each data set's own.
  config.synthetic = ConfigDict({'rows': 2000, 'classes': 10, 'shape': (8, 8, 1), 'seed': 0})
  config.crisismmd = ConfigDict({
      'task': 'informative',  # informative humanitarian
      'labels': 'agreed',  # text image; agreed: theirs where they are equal, other rows left out
      'modalities': 'both',  # text image both
      'ngrams': 2048,  # numbers that a text's words and pairs of words are hashed to
      # Instead of these: an .npz file with the tweets' numbers `id` and a vector each, `x`.
      'vectors': '',
      'image_size': 64,  # pixels a side
      'cache': '',  # folder for decoded images; '': `cache` in that of the release
      'broken': 'refuse',  # refuse skip: rows whose image can't be read
  })
  config.text = ConfigDict({
      'owner': ('play', 'speaker'),  # the fields that name a natural client
      'window': 40,  # characters before the one to tell
      'min_rows': 50,  # an owner with fewer is left out
  })
  return config.lock()


CHOICES = {
    'algorithm': (
        'fedavg', 'fedprox', 'fedopt', 'scaffold', 'moon', 'fedgen', 'clusamp', 'fedmr',
        'fedcross', 'ifca', 'fesem', 'fedem', 'ditto', 'apfl', 'fedper', 'fedrep', 'fedbn',
        'pfedme', 'fedmerge', 'feddle', 'server_only', 'server_as_client', 'clg_sgd', 'fedclg_c',
        'fedclg_s', 'feddf', 'learned_soup', 'adamerging', 'gossip', 'merging', 'dmm', 'local',
        'centralised'),
    'model': ('mlp', 'cnn', 'resnet', 'vgg16', 'lstm', 'fusion'),
    'normalise': ('standard', 'none'),
    'augment': ('none', 'crop_flip'),
    'compute_dtype': ('float32', 'bfloat16'),
    'seed_map': ('in_turn', 'together'),
    'selection': ('accuracy', 'loss'),
    'mapper': ('auto', 'map', 'vmap', 'sharded'),
    'partition.kind': (
        'iid', 'dirichlet', 'shards', 'clusters', 'quantity', 'natural', 'domain', 'resample'),
    'partition.test_rows': ('own', 'alike', 'pooled'),
    'local.optimizer': ('sgd', 'adamw'),
    'fedavg.weights': ('size', 'uniform'),
    'fedprox.weights': ('size', 'uniform'),
    'fedopt.weights': ('size', 'uniform'),
    'clusamp.order': ('size', 'similarity'),
    'fedmr.granularity': ('tensor', 'layer', 'segment'),
    'fedmr.shuffle': ('all', 'probability', 'band'),
    'fedcross.collaborator': ('in_order', 'lowest', 'highest'),
    'fedmerge.start': ('different', 'same'),
    'fedmerge.scope': ('head', 'all'),
    'fedmerge.normalise': ('column', 'none'),
    'server.surrogate': ('labels', 'head', 'distil', 'entropy'),
    'feddle.normalise': ('whole', 'layer', 'none'),
    'feddle.coefficients': ('global', 'layer'),
    'feddle.constraint': ('none', 'convex', 'box'),
    'feddle.fallback': ('held_out', 'none'),
    'feddle.evict': ('oldest', 'worst'),
    'feddle.statistics': ('average', 'server'),
    'gossip.weights': ('metropolis', 'laplacian', 'uniform'),
    'gossip.start': ('different', 'same'),
    'gossip.statistics': ('mixed', 'kept'),
    'gossip.merged_statistics': ('recalibrated', 'averaged'),
    'gossip.merge_data': ('train', 'validation'),
    'merging.match': ('none', 'weights', 'activations'),
    'merging.rows': ('train', 'validation'),
    'merging.statistics': ('pooled', 'recalibrated', 'repaired'),
    'dmm.merge': ('mean', 'matching', 'ties'),
    'dmm.buffers': ('pooled', 'core'),
    'dmm.inputs': ('inverted', 'noise', 'real', 'none'),
    'dmm.whose': ('merged', 'each'),
    'dmm.augment': ('shift_flip', 'none'),
    'dmm.teachers': ('divergent', 'everybody'),
    'dmm.words': ('counts', 'equal'),
    'dmm.order': ('joint', 'in_turn'),
    'dmm.after': ('frozen', 're_estimated'),
    'crisismmd.task': ('informative', 'humanitarian'),
    'crisismmd.labels': ('agreed', 'text', 'image'),
    'crisismmd.modalities': ('text', 'image', 'both'),
    'crisismmd.broken': ('refuse', 'skip'),
}

AT_LEAST_ONE = (
    'rounds', 'eval_every', 'eval_batch', 'seeds', 'keep', 'local.batch', 'partition.min_size',
    'partition.clusters', 'partition.classes_per_cluster', 'fedgen.steps', 'fedgen.batch',
    'fedgen.hidden', 'fedgen.noise', 'fedmr.segments', 'ifca.models', 'fesem.models',
    'fedem.models', 'fedrep.head_epochs', 'pfedme.inner_steps', 'fedmerge.models', 'server.steps',
    'server.batch', 'feddle.atlas', 'feddle.population', 'gossip.degree', 'gossip.merge_batches',
    'merging.batches', 'merging.batch', 'dmm.batch', 'dmm.batches', 'dmm.steps',
    'dmm.distil_batch', 'inversion.steps',
    'lstm.embedding', 'fusion.embedding', 'fusion.hidden', 'synthetic.rows',
    'synthetic.classes', 'crisismmd.ngrams', 'crisismmd.image_size', 'text.window',
    'text.min_rows')
NOT_NEGATIVE = (
    'clients', 'participation', 'chunk', 'seed', 'stop.patience',
    'partition.size', 'partition.seed', 'server.seed', 'corrupt.rate', 'synthetic.seed',
    'local.epochs', 'local.steps', 'local.momentum', 'local.weight_decay', 'local.clip',
    'local.clip_value', 'local.label_smoothing', 'local.prox', 'fedprox.mu', 'fedopt.momentum',
    'fedopt.eps', 'fine_tune.epochs', 'fine_tune.lr', 'moon.mu', 'fedgen.alpha',
    'fedgen.weight_decay', 'ditto.lam', 'apfl.alpha_lr', 'pfedme.lam', 'fedmr.first_stage',
    'fedmerge.mu', 'fedmerge.newcomers', 'fedmerge.newcomer_rounds', 'feddle.pull',
    'feddle.strikes', 'feddle.tau_max', 'one_shot.every', 'dmm.keep',
    'inversion.labels', 'inversion.variation', 'inversion.length')
POSITIVE = (
    'local.lr', 'fedopt.lr', 'scaffold.server_lr', 'moon.tau', 'fedgen.decay', 'fedgen.lr',
    'pfedme.personal_lr', 'pfedme.beta', 'fedmr.frozen', 'fedmerge.weight_lr', 'server.lr',
    'feddle.lr', 'feddle.sigma', 'feddle.bound', 'feddf.lr', 'learned_soup.lr', 'adamerging.lr',
    'partition.alpha', 'partition.cluster_alpha', 'gossip.edge_probability', 'dmm.lr',
    'dmm.temperature', 'inversion.lr')
SHARES = (
    'fedgen.decay', 'fedmr.dropout', 'fedcross.alpha', 'apfl.alpha', 'server.held_out',
    'server.noise', 'feddle.memory', 'corrupt.clients')


def complete(config: ConfigDict) -> ConfigDict:
  """Returns the defaults with a config's values, which may name only some of the keys.

  Raises:
    InputError: a key that does not exist, or a value of another type.
  """
  return updated(get_config(), flat(config), 'the config file')


def updated(config: ConfigDict, changes: Mapping[str, Any], source: str) -> ConfigDict:
  """Returns a copy with other values: {'local.lr': 0.1, ...}, out of what `source` names.

  Raises:
    InputError: a key that does not exist, or a value of another type.
  """
  full, keys = config.copy_and_resolve_references(), tuple(flat(config))
  for key, value in changes.items():
    if key not in keys:
      raise InputError(f'got {key} in {source}; expected a key of hmm_jax/config.py'
                       + suggestion(key, keys))
    try:
      full.update_from_flattened_dict({key: value})
    except TypeError as error:
      raise InputError(f'got {key}={value!r}; expected a value like {flat(full)[key]!r}') from error
  return full


def check(config: ConfigDict):
  """Checks every value that a table above speaks of.

  Raises:
    InputError: a name is unknown, or a number is not finite or out of range.
  """
  values = flat(config)
  for key, value in values.items():
    if isinstance(value, float) and not math.isfinite(value):
      raise InputError(f'got {key}={value}; expected a finite number')
  for key, names in CHOICES.items():
    if values[key] not in names:
      raise InputError(f'got {key}={values[key]}; expected one of {", ".join(names)}'
                       + suggestion(values[key], names))
  if values['seed'] + values['seeds'] > 2**31:
    raise InputError(f'got seed={values["seed"]}; expected seeds below 2**31')
  if values['server.size'] < -1:
    raise InputError(f'got server.size={values["server.size"]}; expected a number of rows, or -1 '
                     'to leave it to the algorithm')
  if values['dmm.shift'] < -1:
    raise InputError(f'got dmm.shift={values["dmm.shift"]}; expected a number of pixels, or -1 for '
                     'a sixteenth of the side')
  for keys, good, wanted in (
      (AT_LEAST_ONE, lambda v: v >= 1, 'at least 1'),
      (NOT_NEGATIVE, lambda v: v >= 0, '0 or more'),
      (POSITIVE, lambda v: v > 0, 'a number above 0'),
      (SHARES, lambda v: 0 <= v <= 1, 'a number from 0 to 1')):
    for key in keys:
      if not good(values[key]):
        raise InputError(f'got {key}={values[key]}; expected {wanted}')


def flat(config: Mapping) -> dict[str, Any]:
  """Returns {'local.lr': 0.05, ...}."""
  values = {}
  for name, value in config.items():
    if isinstance(value, Mapping | ConfigDict):
      values |= {f'{name}.{key}': v for key, v in flat(value).items()}
    else:
      values[name] = value
  return values


def suggestion(name: str, names: tuple[str, ...]) -> str:
  """Returns '; did you mean X?' for the nearest name, or nothing."""
  near = difflib.get_close_matches(name, names, n=1)
  return f'; did you mean {near[0]}?' if near else ''
