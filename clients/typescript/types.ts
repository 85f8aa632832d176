// Generated from /docs/json. Do not edit: ASH_UPDATE_CLIENTS=1 cargo nextest run --test client_generated

/** The version that new sessions use from now on. */
export interface ActivatedBody {
  activated: boolean;
  versionNumber: number;
}

/** An agent as clients see it. */
export interface Agent {
  backend?: string | null;
  config?: Record<string, unknown> | null;
  createdAt: string;
  description?: string | null;
  /** Names of the agent's variables. Values are never shown. */
  env?: Record<string, string>;
  id: string;
  model?: string | null;
  name: string;
  /** The directory on the server that sessions are copied from. */
  path: string;
  slug?: string | null;
  status?: string | null;
  systemPrompt?: string | null;
  tenantId: string;
  updatedAt: string;
  /** Starts at 1; each deployment adds 1. */
  version: number;
}

/** One agent. */
export interface AgentBody {
  agent: Agent;
}

/** Number of agents. */
export interface AgentCount {
  total: number;
}

/** A file of an agent. */
export interface AgentFileBody {
  content: string;
  path: string;
  /** Bytes. */
  size: number;
}

/** A deleted file. */
export interface AgentFileDeleted {
  deleted: boolean;
}

/** The files of an agent. */
export interface AgentFilesBody {
  files: Array<FileEntry>;
  /** Present and true when the agent has more files than one answer holds. */
  truncated?: boolean;
}

/** A version of an agent. */
export interface AgentVersion {
  agentName: string;
  createdAt: string;
  createdBy: string | null;
  id: string;
  isActive: boolean;
  knowledgeFiles: Array<Record<string, unknown>>;
  name: string;
  releaseNotes: string | null;
  systemPrompt: string | null;
  tenantId: string;
  updatedAt: string;
  versionNumber: number;
}

/** Agents by name. */
export interface AgentsBody {
  agents: Array<Agent>;
}

/** Counts of the tenant. */
export interface AnalyticsBody {
  agents: AgentCount;
  evals: EvalCount;
  sessions: SessionCount;
  usage: UsageStats;
}

/** Body of every answer that is not a success. */
export interface ApiError {
  /** What is wrong and which field, for people. */
  error: string;
  /** The HTTP status. */
  statusCode: number;
}

/** An attachment, without its bytes. */
export interface Attachment {
  createdAt: string;
  filename: string;
  id: string;
  /** `unlinked` when none was given. */
  messageId: string;
  mimeType: string;
  sessionId: string;
  /** Bytes. */
  size: number;
  /** The copy in the workspace. Absent when the files of the session are no longer kept. */
  storagePath?: string | null;
  tenantId: string;
}

/** One attachment. */
export interface AttachmentBody {
  attachment: Attachment;
}

/** The attachments of a session, oldest first. */
export interface AttachmentsBody {
  attachments: Array<Attachment>;
}

/** Free-form settings of clients. */
export interface ConfigBody {
  config: Record<string, unknown>;
}

/** The confinement of one sandbox, as it was measured. */
export interface Confinement {
  /** Every layer that the floor asks for is in force. */
  confined: boolean;
  inside: ConfinementMeasured;
  layers: Array<ConfinementLayer>;
  measuredAt: string;
  outside: ConfinementOutside;
  /** Microseconds from the request to the answer of the probe, the start of its process included. */
  tookMicros: number;
}

/** The measured confinement of one session. */
export interface ConfinementBody {
  confinement: Confinement;
}

/** The five sets, as 16 hexadecimal digits of /proc/self/status. */
export interface ConfinementCapabilities {
  ambient: string;
  bounding: string;
  effective: string;
  inheritable: string;
  permitted: string;
}

/** A layer, and whether it holds. */
export interface ConfinementLayer {
  /** What shows it, or what is wrong. */
  evidence: string;
  inForce: boolean;
  layer: Layer;
  /** Whether the floor asks for it. */
  required: boolean;
}

/** The result of [`measure`]. Plain data, used on both ends of the pipe and in a session's report. */
export interface ConfinementMeasured {
  capabilities: ConfinementCapabilities;
  /** Lines of /proc/self/cgroup as seen inside. */
  cgroups: Array<string>;
  gid: number;
  gidMap: Array<Array<number>>;
  /** Supplementary groups. */
  groups: Array<number>;
  interfaces: Array<string>;
  /** Landlock ABI as seen inside. 0: no landlock. */
  landlockAbi: number;
  /** Listening TCP addresses. */
  listeners: Array<string>;
  /** Duration of the measurement in microseconds, without the start of the process. */
  micros: number;
  mounts: Array<ConfinementMount>;
  /** Inode number of each namespace in /proc/self/ns. */
  namespaces: Record<string, number>;
  noNewPrivs: boolean;
  probes: Array<ConfinementProbe>;
  seccompFilters: number;
  /** 0 none, 1 strict, 2 filter (proc(5)). */
  seccompMode: number;
  uid: number;
  /** Lines of /proc/self/uid_map: inside, outside, count. */
  uidMap: Array<Array<number>>;
}

/** One line of /proc/self/mountinfo. */
export interface ConfinementMount {
  kind: string;
  options: string;
  path: string;
}

/** What is known of a sandbox from without. */
export interface ConfinementOutside {
  /** Directories of the sandbox's cgroups on the host. */
  cgroups: Array<string>;
  /** Inode numbers of ashd's own namespaces: none of the sandbox's may be among them. */
  hostNamespaces: Record<string, number>;
  limits: Array<LimitInForce>;
}

/** One attempt. */
export interface ConfinementProbe {
  /** `works`, or the errnos that count as a refusal. */
  expected: string;
  layer?: Layer | null;
  name: string;
  /** `works`, or the errno. */
  observed: string;
  ok: boolean;
}

export interface CpuUsage {
  /** Periods of 100 ms in which it ran, and those in which it was stopped by its limit. */
  periods: number | null;
  throttledPeriods: number | null;
  /** Microseconds it was stopped by its limit. */
  throttledUs: number | null;
  /** Microseconds of CPU time, all cores together. */
  usageUs: number | null;
}

/** Body of `POST /api/sessions`. Unknown fields are ignored. */
export interface CreateSession {
  agent: string;
  allowedTools?: Array<string> | null;
  betas?: Array<string> | null;
  credentialId?: string | null;
  disallowedTools?: Array<string> | null;
  extraEnv?: Record<string, string>;
  initialAgent?: string | null;
  mcpServers?: Record<string, Record<string, unknown>>;
  model?: string | null;
  /** bypassPermissions (the default), permissionsByAgent or default. */
  permissionMode?: string | null;
  subagents?: Record<string, unknown> | null;
  systemPrompt?: string | null;
}

/** A credential, without its key. */
export interface Credential {
  active: boolean;
  createdAt: string;
  id: string;
  label: string;
  /** When it was last used for a request to the model; null: never. */
  lastUsedAt: string | null;
  type: string;
}

/** One credential. */
export interface CredentialBody {
  credential: Credential;
}

/** The tenant's credentials, oldest first. */
export interface CredentialsBody {
  credentials: Array<Credential>;
}

/** A deleted file. */
export interface DeletedBody {
  deleted: boolean;
  path: string;
}

/** Body of `POST /api/agents`: `path`, or `files` and/or `systemPrompt`. */
export interface DeployAgent {
  backend?: string | null;
  config?: Record<string, unknown> | null;
  description?: string | null;
  env?: Record<string, string>;
  files?: Array<UploadedFile> | null;
  model?: string | null;
  /** 1 to 255 of A-Z a-z 0-9 _ - */
  name: string;
  /** A directory on the server; it must contain a CLAUDE.md. */
  path?: string | null;
  slug?: string | null;
  /** Becomes CLAUDE.md when `files` has none (and is then no field of the agent); otherwise it is appended to the prompt. */
  systemPrompt?: string | null;
}

/** A deployed agent. */
export interface DeployedBody {
  agent: Agent;
  /** Entries of the directory that sessions cannot copy: links that lead out of it, sockets, named pipes, devices. Absent when there are none. */
  skipped?: Array<SkippedEntry>;
  /** How many more there are: at most 100 are listed. */
  skippedMore?: number;
}

/** Disk use. */
export interface DiskStats {
  /** Time since the count. */
  ageMs: number;
  /** Bytes in allocated blocks of all files of the session. Counting ends a little above the limit. */
  bytes: number;
  files: number;
}

/** A case as clients see it; absent values are null. */
export interface EvalCase {
  agentName: string;
  category: string | null;
  chatHistory: Array<EvalMessage> | null;
  createdAt: string;
  expectedNotTopics: Array<string> | null;
  expectedTopics: Array<string> | null;
  id: string;
  isActive: boolean;
  question: string;
  referenceAnswer: string | null;
  tags: Array<string> | null;
  tenantId: string;
  updatedAt: string;
}

/** One case. */
export interface EvalCaseBody {
  case: EvalCase;
}

/** Body of the POST and the PATCH of a case. In the POST, null equals absent. In the PATCH, null clears and absent fields stay. */
export interface EvalCaseFields {
  /** 1 to 200 bytes. */
  category?: string | null;
  /** The conversation before the question: at most 100 messages and 262144 bytes; the first message is the user's. */
  chatHistory?: Array<EvalMessage> | null;
  /** Texts that a good answer does not contain; the same limits. */
  expectedNotTopics?: Array<string> | null;
  /** Texts that a good answer contains, ignoring case: at most 100 of 1 to 1000 bytes each. */
  expectedTopics?: Array<string> | null;
  /** Only active cases run. Default: true. */
  isActive?: boolean | null;
  /** What the agent is asked: 1 to 65536 bytes. Required in the POST. */
  question?: string | null;
  /** For human readers; at most 65536 bytes. */
  referenceAnswer?: string | null;
  /** At most 50 of 1 to 200 bytes each. */
  tags?: Array<string> | null;
}

/** Cases, oldest first. */
export interface EvalCasesBody {
  cases: Array<EvalCase>;
}

/** One case in two runs; null for a run without it. */
export interface EvalCompared {
  caseId: string;
  /** Null when the case no longer exists. */
  question: string | null;
  resultA: EvalResult | null;
  resultB: EvalResult | null;
}

/** Two runs, case by case. */
export interface EvalComparison {
  results: Array<EvalCompared>;
  runA: EvalRun;
  runB: EvalRun;
}

/** The comparison. */
export interface EvalComparisonBody {
  comparison: EvalComparison;
}

/** Number of eval runs created, by status. */
export interface EvalCount {
  /** By status. Statuses without runs are absent. */
  byStatus: Record<string, number>;
  totalRuns: number;
}

/** Body of the import: the answer of an export, or cases without ids. */
export interface EvalImport {
  /** 1 to 1000. */
  cases: Array<EvalCaseFields>;
}

/** Body of `PATCH .../eval-results/{id}`: absent fields stay, null clears. */
export interface EvalJudgement {
  /** At most 16384 bytes. */
  humanNotes?: string | null;
  /** 1 to 5. */
  humanScore?: number | null;
}

/** A message of an earlier conversation. */
export interface EvalMessage {
  content: string;
  /** user or assistant. */
  role: string;
}

/** The agent's answer to one case of a run. */
export interface EvalResult {
  /** Truncated to 256 KiB. */
  agentResponse: string | null;
  completedAt: string | null;
  createdAt: string;
  error: string | null;
  /** The case may no longer exist. */
  evalCaseId: string;
  evalRunId: string;
  humanNotes: string | null;
  /** 1 to 5. */
  humanScore: number | null;
  id: string;
  latencyMs: number | null;
  /** Always null. */
  llmJudgeScore: number | null;
  /** Share of the forbidden topics that the answer does not contain, from 0 to 1. */
  safetyScore: number | null;
  /** pending, running, completed or failed. */
  status: "pending" | "running" | "completed" | "failed";
  tenantId: string;
  /** Share of the expected topics that the answer contains, from 0 to 1. */
  topicScore: number | null;
}

/** One result. */
export interface EvalResultBody {
  result: EvalResult;
}

/** Results of a run, in the order of its cases. */
export interface EvalResultsBody {
  results: Array<EvalResult>;
}

/** A run as clients see it. */
export interface EvalRun {
  agentName: string;
  completedAt: string | null;
  /** Answered and failed cases. */
  completedCases: number;
  createdAt: string;
  /** Why it failed. */
  error: string | null;
  id: string;
  startedAt: string | null;
  /** pending, running, completed, or failed when every case failed. */
  status: "pending" | "running" | "completed" | "failed";
  summary: EvalSummary | null;
  tenantId: string;
  totalCases: number;
  /** Null when the agent had no active version. */
  versionNumber: number | null;
}

/** One run. */
export interface EvalRunBody {
  run: EvalRun;
}

/** Runs, newest first. */
export interface EvalRunsBody {
  runs: Array<EvalRun>;
}

/** Results of a run that was scored again. */
export interface EvalScoredBody {
  results: Array<EvalResult>;
  /** Results with new scores: those that were answered and whose case still exists. */
  scored: number;
}

/** Totals of a run. Averages are over the answered cases, and null when there are none. */
export interface EvalSummary {
  avgLatencyMs: number | null;
  /** Always null. */
  avgLlmJudgeScore: number | null;
  avgSafetyScore: number | null;
  avgTopicScore: number | null;
  /** Share of all cases in which both scores are at least 0.5. */
  passRate: number;
}

/** One event of the timeline. */
export interface Event {
  createdAt: string;
  /** A JSON text. */
  data: string;
  id: string;
  /** Starts at 1, without gaps. */
  sequence: number;
  sessionId: string;
  tenantId: string;
  type: "lifecycle" | "text" | "tool_start" | "tool_result" | "reasoning" | "error" | "turn_complete";
}

export interface EventsBody {
  events: Array<Event>;
  /** Present and true when the page ended at 8 MiB of data before its limit; continue with `after` (or `before`). */
  truncated?: boolean;
}

/** Body of `POST .../exec`. */
export interface ExecCommand {
  /** A line for `/bin/bash -c`, run in /workspace. */
  command: string;
  /** Milliseconds until the command and all its descendants are killed. Default: 30000. */
  timeout?: number | null;
}

/** How the command ended. */
export interface ExecResult {
  /** 128 + n for death by signal n; 124 at the timeout. */
  exitCode: number;
  stderr: string;
  /** At most 1 MiB; truncated output ends with a note. */
  stdout: string;
  /** Present when the timeout ended the command. */
  timedOut?: boolean;
  /** Present when stdout or stderr was truncated. */
  truncated?: boolean;
}

/** A file as JSON. */
export interface FileBody {
  content: string;
  path: string;
  /** Bytes. */
  size: number;
  source: string;
}

/** One file. */
export interface FileEntry {
  modifiedAt: string;
  /** Relative to the workspace. Bytes that are not UTF-8 are percent-encoded (`caf%E9`). */
  path: string;
  /** Bytes. */
  size: number;
}

/** The files of a workspace. */
export interface FilesBody {
  files: Array<FileEntry>;
  /** `sandbox` while the session can run; `snapshot` after it has ended or stopped. */
  source: string;
  /** Present and true when there are more files than one answer holds. */
  truncated?: boolean;
}

/** The copy of a session. */
export interface ForkBody {
  session: Session;
  /** Files that the copy lacks or has changed: sockets, named pipes, devices, setuid bits. Absent when there are none. Paths are relative to the workspace, or start with `/home/agent/`. */
  skipped?: Array<SkippedEntry>;
  /** How many more there are: at most 100 are listed. */
  skippedMore?: number;
}

/** State of the daemon. */
export interface HealthBody {
  /** Sandboxes that have processes. */
  activeSandboxes: number;
  /** Sessions in state `active`. */
  activeSessions: number;
  pool: PoolStats;
  status: string;
  /** Seconds since the daemon started. */
  uptime: number;
  version: string;
}

/** Number of imported cases. */
export interface ImportedBody {
  imported: number;
}

/** A key as it is listed. */
export interface KeyView {
  /** Present and true for keys with the admin role, which only admins can list. */
  admin?: boolean;
  createdAt: string;
  id: string;
  /** Its first characters, to tell keys apart. */
  keyPrefix: string;
  label: string;
}

/** The tenant's keys. */
export interface KeysBody {
  keys: Array<KeyView>;
}

/** One layer of confinement. `docs/sandbox.md` describes each. */
export type Layer = "user_namespace" | "mount_namespace" | "pid_namespace" | "ipc_namespace" | "uts_namespace" | "cgroup_namespace" | "network_namespace" | "landlock" | "seccomp" | "capabilities" | "no_new_privs" | "memory_limit" | "cpu_limit" | "pids_limit";

/** The level that decided a limit. On a tie the more general one wins: it must be raised first. */
export type Level = "host" | "config" | "tenant" | "agent" | "session";

/** One limit. */
export interface LimitInForce {
  /** The controller exists, the process is in its group, and the value is a limit. */
  enforced: boolean;
  /** The name of a field of the session's limits. */
  name: string;
  /** The file with the value, or the reason why there is none. */
  source: string;
  /** In the unit of the limit. Absent if the kernel enforces none. */
  value: number | null;
}

/** One limit, and the level that decided it. */
export interface LimitState {
  decidedBy: Level;
  /** Whether this host enforces it: `false` where the kernel has no controller for it. */
  enforced: boolean;
  /** Maximum that the caller may set on this level; `null`: any number. */
  most: number | null;
  /** The value set on this level; `null` when not set. */
  set: number | null;
  split?: Stored | null;
  unit: string;
  /** The tenant's use; only for limits of a tenant as a whole. */
  used?: number | null;
  /** `null`: unlimited (the default of the `io` limits only). */
  value: number | null;
}

/** Limits by name. */
export interface LimitsBody {
  limits: Record<string, LimitState>;
  /** Sessions that use more than the new limit and keep their old one. */
  notFollowed?: Array<NotFollowed>;
}

/** The limits to change; absent limits stay. `null` unsets a limit at this level, so the levels above decide. */
export interface LimitsChange {
  /** Thousandths of one core. At the limit: throttled. */
  cpuMillis?: number | null;
  /** Share of the CPU when cores are scarce, 1 to 10000. */
  cpuWeight?: number | null;
  /** Bytes on the disk. At the limit the session is frozen and gets a message. */
  diskBytes?: number | null;
  /** Files and directories. Same behaviour as for bytes. */
  diskFiles?: number | null;
  /** Bytes per second from and to the disk of the sessions. At the limit: throttled. */
  ioReadBps?: number | null;
  /** Operations per second; same behaviour as for bytes. */
  ioReadIops?: number | null;
  ioWriteBps?: number | null;
  ioWriteIops?: number | null;
  /** Bytes of memory, including the tmpfs mounts of the sandbox. At the limit the kernel kills processes. */
  memoryBytes?: number | null;
  /** Processes and threads. At the limit forks fail. */
  pids?: number | null;
  /** Tenants only: bytes of all files and rows of the tenant. At the limit new work and uploads are refused (507). */
  storageBytes?: number | null;
  /** Bytes of swap, in addition. */
  swapBytes?: number | null;
  /** Milliseconds of one turn. At the limit the turn is interrupted. */
  turnMs?: number | null;
}

/** One line. */
export interface LogEntry {
  /** Increases from line to line, not by one. */
  index: number;
  /** `stderr`. */
  level: string;
  text: string;
  /** When the log was last written to; lines have no time of their own. */
  ts: string;
}

/** Lines in order. */
export interface LogsBody {
  logs: Array<LogEntry>;
  source: string;
}

export interface MemoryUsage {
  /** Bytes now, the page cache of its files included. */
  currentBytes: number | null;
  /** Processes the kernel killed because the limit was reached. */
  oomKills: number | null;
  /** Bytes at most since the sandbox began. */
  peakBytes: number | null;
  /** Bytes in swap. */
  swapBytes: number | null;
  /** Bytes that the kernel could not simply take back: without the page cache. */
  unreclaimableBytes: number | null;
}

/** One message of the history. */
export interface Message {
  /** A JSON text: `{"type":"user","content":...}` as sent, or Claude Code's own message. */
  content: string;
  createdAt: string;
  id: string;
  /** `user` or `assistant`. */
  role: "user" | "assistant";
  /** Starts at 1, without gaps. */
  sequence: number;
  sessionId: string;
  tenantId: string;
}

/** The result of the upload. */
export interface MessageBody {
  message: string;
  /** Entries of the archive that the workspace lacks or has changed: devices, named pipes, setuid bits. Absent when there are none. */
  skipped?: Array<SkippedEntry>;
  /** How many more there are: at most 100 are listed. */
  skippedMore?: number;
}

export interface MessagesBody {
  messages: Array<Message>;
  /** Present and true when the page ended at 8 MiB of content before its limit; continue with `after` (or `before`). */
  truncated?: boolean;
}

/** A new key. It is shown only once. */
export interface MintedKey {
  id: string;
  key: string;
}

/** A new key and its tenant. */
export interface MintedTenantKey {
  id: string;
  key: string;
  tenantId: string;
}

/** Body of the POST. */
export interface NewAgentFiles {
  files: Array<UploadedFile>;
}

/** Body of `POST .../attachments`. */
export interface NewAttachment {
  /** Base64; at most 10 MiB, or `ASH_MAX_ATTACHMENT_SIZE`. */
  content: string | null;
  filename: string;
  /** The message it belongs to. */
  messageId?: string | null;
  /** Default: by the extension of the file name. */
  mimeType?: string | null;
}

/** Body of the POST. */
export interface NewCredential {
  /** The provider's key. */
  key: string;
  /** Its purpose. Default: the type. */
  label?: string | null;
  /** `anthropic`, or `custom`: a key for the server that `ANTHROPIC_BASE_URL` of ashd names. Other types are refused, because no session could use them. */
  type: string;
}

/** Body of `POST .../eval-runs`. */
export interface NewEvalRun {
  /** Only cases of one of these categories. */
  categories?: Array<string> | null;
  /** Only cases with one of these tags. */
  tags?: Array<string> | null;
  /** The version whose prompt the run uses. Default: the active version, else the agent's own prompt. */
  versionNumber?: number | null;
}

/** One file to write. */
export interface NewFile {
  /** Base64. */
  content: string;
  /** Accepted and ignored: the type follows the extension. */
  mimeType?: string | null;
  /** Relative to `targetPath`. Bytes that are not UTF-8 are percent-encoded (`caf%E9`). */
  path: string;
}

/** Body of the POSTs. */
export interface NewKey {
  /** Gives the key the admin role (needs the admin role; tenant `default` only). */
  admin?: boolean;
  /** Its purpose; 1 to 200 bytes. */
  label: string;
  /** The key's tenant. Default: the caller's own. */
  tenantId?: string | null;
}

/** Body of the POST. */
export interface NewQueueItem {
  agentName: string;
  /** Retries after a failed attempt, 0 to 100. Default: 3. */
  maxRetries?: number | null;
  /** Higher values run first. Default: 0. */
  priority?: number | null;
  prompt: string;
  /** The session that gets the prompt. Default: a new session for each item. */
  sessionId?: string | null;
}

/** Body of `POST .../workspace`. */
export interface NewWorkspace {
  /** Base64 of a tar archive, plain or compressed with gzip or zstd; at most 100 MiB. */
  bundle: string;
}

/** A session that could not follow a change of a level above: it keeps its limits. */
export interface NotFollowed {
  reason: string;
  sessionId: string;
}

export interface OkBody {
  ok: boolean;
}

/** Body of `PATCH /api/agents/{name}`: absent fields stay, null clears. */
export interface PatchAgent {
  backend?: string | null;
  /** Merged into the config; a null removes its key. */
  config?: Record<string, unknown> | null;
  description?: string | null;
  /** Replaces all variables. */
  env?: Record<string, string> | null;
  model?: string | null;
  slug?: string | null;
  status?: string | null;
  systemPrompt?: string | null;
}

/** Body of `PATCH /api/sessions/:id/config`. */
export interface PatchConfig {
  allowedTools?: Array<string> | null;
  betas?: Array<string> | null;
  disallowedTools?: Array<string> | null;
  initialAgent?: string | null;
  model?: string | null;
  subagents?: Record<string, unknown> | null;
}

export interface PidsUsage {
  /** Processes and threads now. */
  current: number | null;
  peak: number | null;
  /** Forks that the limit refused. */
  refused: number | null;
}

/** `pool` of `/health`. Maintained as counters, never computed from rows. */
export interface PoolStats {
  cold: number;
  maxCapacity: number;
  preWarmHits: number;
  resumeColdHits: number;
  resumeWarmHits: number;
  running: number;
  total: number;
  waiting: number;
  warm: number;
  warming: number;
}

export interface Pressure {
  /** Percent of the time in which all of them waited. */
  full10: number;
  /** Percent of the time in which some process waited. */
  some10: number;
  /** Microseconds in which some process waited, since the sandbox began. */
  someTotalUs: number;
}

/** Share of the last 10 s in which something waited for the resource (psi(7)). */
export interface Pressures {
  cpu: Pressure | null;
  io: Pressure | null;
  memory: Pressure | null;
}

/** Items, newest first. */
export interface QueueBody {
  items: Array<QueueItem>;
}

/** A prompt in the queue. */
export interface QueueItem {
  agentName: string;
  completedAt: string | null;
  createdAt: string;
  /** Why the last attempt failed. */
  error: string | null;
  id: string;
  maxRetries: number;
  priority: number;
  prompt: string;
  /** claude's answer, when completed. */
  result: string | null;
  retryCount: number;
  /** The session of the item. */
  sessionId: string | null;
  startedAt: string | null;
  /** pending, processing, completed, failed or cancelled. */
  status: "pending" | "processing" | "completed" | "failed" | "cancelled";
  tenantId: string;
}

/** One item. */
export interface QueueItemBody {
  item: QueueItem;
}

/** Number of the tenant's items by status. */
export interface QueueStats {
  cancelled: number;
  completed: number;
  failed: number;
  pending: number;
  processing: number;
}

/** The tenant's counts. */
export interface QueueStatsBody {
  stats: QueueStats;
}

/** Where sandboxes run. */
export interface Runner {
  /** Maximum number of live sandboxes. */
  capacity: number;
  heartbeatAt: string;
  id: string;
  /** Active sessions. */
  sessions: number;
  status: string;
  version: string;
}

/** The list of runners: one. */
export interface RunnersBody {
  runners: Array<Runner>;
}

/** Body of `POST /api/sessions/:id/messages`. */
export interface SendMessage {
  /** A string, or an array of content blocks (text, image, document); passed on unchanged. */
  content: string | Array<Record<string, unknown>>;
  /** low, medium, high or max. */
  effort?: string | null;
  includePartialMessages?: boolean;
  maxBudgetUsd?: number | null;
  maxTurns?: number | null;
  model?: string | null;
  outputFormat?: Record<string, unknown> | null;
  thinking?: Record<string, unknown> | null;
}

/** A session as clients see it. */
export interface Session {
  agentName: string;
  /** Set by `PATCH .../config`. */
  config: Record<string, unknown> | null;
  createdAt: string;
  /** Why the session is in state `error`. */
  error?: string | null;
  id: string;
  lastActiveAt: string;
  model: string | null;
  parentSessionId: string | null;
  /** Always null: one host runs everything. */
  runnerId: string | null;
  sandboxId: string;
  status: SessionStatus;
  tenantId: string;
}

/** One session. */
export interface SessionBody {
  session: Session;
}

/** Number of sessions created, by status. */
export interface SessionCount {
  /** By status. Statuses without sessions are absent. */
  byStatus: Record<string, number>;
  total: number;
}

/** What a session uses. Reading it wakes nothing. */
export type SessionStats = {
  cpu?: CpuUsage;
  memory?: MemoryUsage;
  pids?: PidsUsage;
  pressure?: Pressures;
} & {
  disk: DiskStats | null;
  frozen: boolean;
  limits: Record<string, unknown>;
  /** Whether it has processes. `frozen`: whether they are frozen. */
  live: boolean;
  turn: TurnStats | null;
};

/** State of a session. The API, SQLite, metrics and logs use the same words. */
export type SessionStatus = "starting" | "active" | "paused" | "stopped" | "ended" | "error";

/** Sessions, newest first. */
export interface SessionsBody {
  sessions: Array<Session>;
  /** Number of all matching sessions, with `includeTotal=true`. */
  total?: number | null;
}

/** Body of `PATCH /api/agents/{name}/warm`. */
export interface SetWarm {
  /** 0 to 100; null restores the configuration's `[pool] warm`. */
  count: number | null;
}

/** One entry that is missing or different in a copy. */
export interface SkippedEntry {
  path: string;
  reason: string;
}

/** Usage of a session. */
export interface StatsBody {
  stats: SessionStats;
}

/** Bytes of a tenant. */
export interface Stored {
  /** Rows: history, versions, queue, stored answers, keys, credentials, usage. */
  database: number;
  /** Directories of sessions (workspace, home, output, attachments) and of uploaded agents. */
  files: number;
}

/** Number of removed rows. */
export interface TenantDeleted {
  deleted: TenantRemoved;
}

/** What a deletion removed. */
export interface TenantRemoved {
  agents: number;
  keys: number;
  /** With their files, messages and timelines. */
  sessions: number;
}

/** The running turn. */
export interface TurnStats {
  number: number;
  runningMs: number;
}

/** Body of `POST .../files`. */
export interface UploadFiles {
  /** 1 to 500 files. */
  files: Array<NewFile>;
  /** A directory of the workspace, created if missing. Default: the workspace itself. */
  targetPath?: string | null;
}

/** Results in the order of the request. */
export interface UploadedBody {
  files: Array<WrittenFile>;
}

/** One uploaded file. */
export interface UploadedFile {
  /** Base64. */
  content: string;
  /** Relative to the agent's directory. */
  path: string;
}

/** Every number is `null` where this host has no controller (or no file) for it. */
export interface Usage {
  cpu: CpuUsage;
  memory: MemoryUsage;
  pids: PidsUsage;
  pressure: Pressures;
}

/** Usage, newest first. */
export interface UsageBody {
  events: Array<UsageEvent>;
}

/** One count of a model answer or of a turn. */
export interface UsageEvent {
  agentName: string;
  createdAt: string;
  /** input_tokens, output_tokens, cache_creation_tokens, cache_read_tokens, tool_call, message or compute_seconds. */
  eventType: "message" | "input_tokens" | "output_tokens" | "cache_creation_tokens" | "cache_read_tokens" | "tool_call" | "compute_seconds";
  id: string;
  sessionId: string;
  tenantId: string;
  value: number;
}

/** Sums over the filtered events. */
export interface UsageStats {
  totalCacheCreationTokens: number;
  totalCacheReadTokens: number;
  totalComputeSeconds: number;
  totalInputTokens: number;
  /** Turns with a result. */
  totalMessages: number;
  totalOutputTokens: number;
  totalToolCalls: number;
}

/** The sums. */
export interface UsageStatsBody {
  stats: UsageStats;
}

/** One version. */
export interface VersionBody {
  version: AgentVersion;
}

/** Body of the POST and the PATCH. The POST takes absent fields from the agent; the PATCH leaves absent fields unchanged. */
export interface VersionBodyIn {
  /** The number or the id of a version of the same agent. Its prompt and knowledge files replace those that the body leaves out. Ignored in a PATCH. */
  cloneFrom?: number | string;
  /** Who created it, as free text. Ignored in a PATCH. */
  createdBy?: string | null;
  /** Stored as sent. */
  knowledgeFiles?: Array<Record<string, unknown>> | null;
  /** 1 to 200 bytes. Default: `v` and the number. */
  name?: string | null;
  releaseNotes?: string | null;
  systemPrompt?: string | null;
}

/** Versions, newest first. */
export interface VersionsBody {
  versions: Array<AgentVersion>;
}

/** The warm sandboxes of an agent. */
export interface WarmBody {
  warm: WarmCount;
}

/** The warm sandboxes of one agent. */
export interface WarmCount {
  /** Configured number. */
  count: number;
  /** `false`: the number is `[pool] warm` of the configuration. */
  own: boolean;
  /** Warm sandboxes ready to be claimed. */
  ready: number;
  /** Whether another one is being created. */
  warming: boolean;
}

/** How many files were written. */
export interface WrittenBody {
  written: number;
}

/** Result for one file. */
export interface WrittenFile {
  error?: string | null;
  path: string;
  /** Bytes. */
  size?: number | null;
  written: boolean;
}

/** Every route, by its method and path. An answer that is no JSON (a file, an event stream) is a `Response`. */
export interface Operations {
  /** List agents by name */
  "GET /api/agents": {
    answer: AgentsBody;
  };
  /** Deploy an agent */
  "POST /api/agents": {
    body: DeployAgent;
    answer: DeployedBody;
  };
  /** Delete an agent */
  "DELETE /api/agents/{name}": {
    path: {
      name: string;
    };
    answer: OkBody;
  };
  /** One agent */
  "GET /api/agents/{name}": {
    path: {
      name: string;
    };
    answer: AgentBody;
  };
  /** Change an agent's fields */
  "PATCH /api/agents/{name}": {
    path: {
      name: string;
    };
    body: PatchAgent;
    answer: AgentBody;
  };
  /** Get an agent's config */
  "GET /api/agents/{name}/config": {
    path: {
      name: string;
    };
    answer: ConfigBody;
  };
  /** Merge into an agent's config */
  "PATCH /api/agents/{name}/config": {
    path: {
      name: string;
    };
    body: ConfigBody;
    answer: ConfigBody;
  };
  /** List the agent's cases, oldest first */
  "GET /api/agents/{name}/eval-cases": {
    path: {
      name: string;
    };
    query?: {
      category?: string;
      isActive?: boolean;
      /** Default: 1000, the maximum number of cases */
      limit?: number;
      offset?: number;
    };
    answer: EvalCasesBody;
  };
  /** Create an eval case */
  "POST /api/agents/{name}/eval-cases": {
    path: {
      name: string;
    };
    body: EvalCaseFields;
    answer: EvalCaseBody;
  };
  /** Export all cases in the format of the import */
  "GET /api/agents/{name}/eval-cases/export": {
    path: {
      name: string;
    };
    answer: EvalCasesBody;
  };
  /** Import cases */
  "POST /api/agents/{name}/eval-cases/import": {
    path: {
      name: string;
    };
    body: EvalImport;
    answer: ImportedBody;
  };
  /** Delete a case */
  "DELETE /api/agents/{name}/eval-cases/{id}": {
    path: {
      name: string;
      id: string;
    };
    answer: undefined;
  };
  /** Get a case */
  "GET /api/agents/{name}/eval-cases/{id}": {
    path: {
      name: string;
      id: string;
    };
    answer: EvalCaseBody;
  };
  /** Change a case */
  "PATCH /api/agents/{name}/eval-cases/{id}": {
    path: {
      name: string;
      id: string;
    };
    body: EvalCaseFields;
    answer: EvalCaseBody;
  };
  /** Store a person's judgement of an answer */
  "PATCH /api/agents/{name}/eval-results/{id}": {
    path: {
      name: string;
      id: string;
    };
    body: EvalJudgement;
    answer: EvalResultBody;
  };
  /** List the agent's runs, newest first */
  "GET /api/agents/{name}/eval-runs": {
    path: {
      name: string;
    };
    query?: {
      /** Default: 50 */
      limit?: number;
      offset?: number;
    };
    answer: EvalRunsBody;
  };
  /** Start an eval run with all active cases */
  "POST /api/agents/{name}/eval-runs": {
    path: {
      name: string;
    };
    body: NewEvalRun;
    answer: EvalRunBody;
  };
  /** Compare two runs, case by case */
  "GET /api/agents/{name}/eval-runs/compare": {
    path: {
      name: string;
    };
    query: {
      runA: string;
      runB: string;
    };
    answer: EvalComparisonBody;
  };
  /** Get a run */
  "GET /api/agents/{name}/eval-runs/{id}": {
    path: {
      name: string;
      id: string;
    };
    answer: EvalRunBody;
  };
  /** List the results of a run, in the order of the cases */
  "GET /api/agents/{name}/eval-runs/{id}/results": {
    path: {
      name: string;
      id: string;
    };
    query?: {
      /** Default: 1000, the maximum number of results */
      limit?: number;
      offset?: number;
    };
    answer: EvalResultsBody;
  };
  /** Score the answers of a run again */
  "POST /api/agents/{name}/eval-runs/{id}/score": {
    path: {
      name: string;
      id: string;
    };
    answer: EvalScoredBody;
  };
  /** List an agent's files */
  "GET /api/agents/{name}/files": {
    path: {
      name: string;
    };
    answer: AgentFilesBody;
  };
  /** Write files of an uploaded agent */
  "POST /api/agents/{name}/files": {
    path: {
      name: string;
    };
    body: NewAgentFiles;
    answer: WrittenBody;
  };
  /** Delete a file of an uploaded agent */
  "DELETE /api/agents/{name}/files/{path}": {
    path: {
      name: string;
      /** Relative to the agent's directory */
      path: string;
    };
    answer: AgentFileDeleted;
  };
  /** Read a file of an agent */
  "GET /api/agents/{name}/files/{path}": {
    path: {
      name: string;
      /** Relative to the agent's directory */
      path: string;
    };
    query?: {
      /** json (default, at most 1 MiB) or raw */
      format?: string;
    };
    answer: AgentFileBody | Response;
  };
  /** Get the limits of an agent's sessions */
  "GET /api/agents/{name}/limits": {
    path: {
      name: string;
    };
    answer: LimitsBody;
  };
  /** Change the limits of an agent's sessions */
  "PATCH /api/agents/{name}/limits": {
    path: {
      name: string;
    };
    body: LimitsChange;
    answer: LimitsBody;
  };
  /** List an agent's versions, newest first */
  "GET /api/agents/{name}/versions": {
    path: {
      name: string;
    };
    answer: VersionsBody;
  };
  /** Create a version of an agent */
  "POST /api/agents/{name}/versions": {
    path: {
      name: string;
    };
    body: VersionBodyIn;
    answer: VersionBody;
  };
  /** Delete a version that is not active */
  "DELETE /api/agents/{name}/versions/{number}": {
    path: {
      name: string;
      /** Its number or its id */
      number: string;
    };
    answer: undefined;
  };
  /** One version */
  "GET /api/agents/{name}/versions/{number}": {
    path: {
      name: string;
      /** Its number or its id */
      number: string;
    };
    answer: VersionBody;
  };
  /** Change a version */
  "PATCH /api/agents/{name}/versions/{number}": {
    path: {
      name: string;
      /** Its number or its id */
      number: string;
    };
    body: VersionBodyIn;
    answer: VersionBody;
  };
  /** Use a version's prompt for new sessions */
  "POST /api/agents/{name}/versions/{number}/activate": {
    path: {
      name: string;
      /** Its number or its id */
      number: string;
    };
    answer: ActivatedBody;
  };
  /** Get how many sandboxes of an agent are kept warm */
  "GET /api/agents/{name}/warm": {
    path: {
      name: string;
    };
    answer: WarmBody;
  };
  /** Keep sandboxes of an agent warm */
  "PATCH /api/agents/{name}/warm": {
    path: {
      name: string;
    };
    body: SetWarm;
    answer: WarmBody;
  };
  /** Get counts and usage of the tenant */
  "GET /api/analytics": {
    query?: {
      /** ISO-8601, exclusive */
      after?: string;
      /** ISO-8601, exclusive */
      before?: string;
    };
    answer: AnalyticsBody;
  };
  /** List the tenant's keys */
  "GET /api/api-keys": {
    answer: KeysBody;
  };
  /** Create a key; it is shown only once */
  "POST /api/api-keys": {
    body: NewKey;
    answer: MintedKey;
  };
  /** Revoke a key */
  "DELETE /api/api-keys/{id}": {
    path: {
      id: string;
    };
    answer: undefined;
  };
  /** Delete an attachment */
  "DELETE /api/attachments/{id}": {
    path: {
      id: string;
    };
    answer: undefined;
  };
  /** Download an attachment */
  "GET /api/attachments/{id}": {
    path: {
      id: string;
    };
    answer: Response;
  };
  /** List the tenant's credentials */
  "GET /api/credentials": {
    answer: CredentialsBody;
  };
  /** Store a key for sessions */
  "POST /api/credentials": {
    body: NewCredential;
    answer: CredentialBody;
  };
  /** Delete a credential */
  "DELETE /api/credentials/{id}": {
    path: {
      id: string;
    };
    answer: undefined;
  };
  /** Create a key for any tenant (admin) */
  "POST /api/internal/api-keys": {
    body: NewKey;
    answer: MintedTenantKey;
  };
  /** List the runners (admin) */
  "GET /api/internal/runners": {
    answer: RunnersBody;
  };
  /** Refused: there are no other runners */
  "POST /api/internal/runners/deregister": {
    answer: never;
  };
  /** Refused: there are no other runners */
  "POST /api/internal/runners/heartbeat": {
    answer: never;
  };
  /** Refused: there are no other runners */
  "POST /api/internal/runners/register": {
    answer: never;
  };
  /** List the queue, newest first */
  "GET /api/queue": {
    query?: {
      /** pending, processing, completed, failed or cancelled */
      status?: string;
      limit?: number;
    };
    answer: QueueBody;
  };
  /** Add a prompt to the queue */
  "POST /api/queue": {
    body: NewQueueItem;
    answer: QueueItemBody;
  };
  /** Count the queue by status */
  "GET /api/queue/stats": {
    answer: QueueStatsBody;
  };
  /** Cancel a pending item */
  "DELETE /api/queue/{id}": {
    path: {
      id: string;
    };
    answer: QueueItemBody;
  };
  /** Get an item, with its result when it is completed */
  "GET /api/queue/{id}": {
    path: {
      id: string;
    };
    answer: QueueItemBody;
  };
  /** List sessions, newest first */
  "GET /api/sessions": {
    query?: {
      /** Only sessions of this agent */
      agent?: string;
      /** Only sessions in this state */
      status?: SessionStatus;
      limit?: number;
      offset?: number;
      /** Count all matching sessions */
      includeTotal?: boolean;
    };
    answer: SessionsBody;
  };
  /** Open a session */
  "POST /api/sessions": {
    body: CreateSession;
    answer: SessionBody;
  };
  /** End a session */
  "DELETE /api/sessions/{id}": {
    path: {
      id: string;
    };
    query?: {
      /** Also remove its files, messages, timeline and attachments at once; this cannot be undone */
      purge?: boolean;
    };
    answer: SessionBody;
  };
  /** Get a session */
  "GET /api/sessions/{id}": {
    path: {
      id: string;
    };
    answer: SessionBody;
  };
  /** List a session's attachments */
  "GET /api/sessions/{id}/attachments": {
    path: {
      id: string;
    };
    answer: AttachmentsBody;
  };
  /** Attach a file to a session */
  "POST /api/sessions/{id}/attachments": {
    path: {
      id: string;
    };
    body: NewAttachment;
    answer: AttachmentBody;
  };
  /** Change model or tools from the next turn on */
  "PATCH /api/sessions/{id}/config": {
    path: {
      id: string;
    };
    body: PatchConfig;
    answer: SessionBody;
  };
  /** Get the measured confinement of a session */
  "GET /api/sessions/{id}/confinement": {
    path: {
      id: string;
    };
    answer: ConfinementBody;
  };
  /** List the timeline of a session */
  "GET /api/sessions/{id}/events": {
    path: {
      id: string;
    };
    query?: {
      /** Maximum number of events, default 200 */
      limit?: number;
      /** Only those with a greater sequence */
      after?: number;
      /** Only those with a smaller sequence */
      before?: number;
      /** `asc` (the default), or `desc` for newest first */
      order?: string;
      /** Only events of this type */
      type?: string;
    };
    answer: EventsBody;
  };
  /** Run a command in the sandbox, beside a running turn */
  "POST /api/sessions/{id}/exec": {
    path: {
      id: string;
    };
    body: ExecCommand;
    answer: ExecResult;
  };
  /** List the files of a workspace */
  "GET /api/sessions/{id}/files": {
    path: {
      id: string;
    };
    query?: {
      /** true (default): includes caches, virtual environments and tmp; all: every file, including `.git`, `node_modules` and lock files */
      includeHidden?: string;
    };
    answer: FilesBody;
  };
  /** Write files into a workspace */
  "POST /api/sessions/{id}/files": {
    path: {
      id: string;
    };
    body: UploadFiles;
    answer: UploadedBody;
  };
  /** Delete a file or a directory of a workspace */
  "DELETE /api/sessions/{id}/files/{path}": {
    path: {
      id: string;
      /** Relative to the workspace */
      path: string;
    };
    query?: {
      /** Delete a directory with its contents (default false) */
      recursive?: boolean;
    };
    answer: DeletedBody;
  };
  /** Read a file */
  "GET /api/sessions/{id}/files/{path}": {
    path: {
      id: string;
      /** Relative to the workspace */
      path: string;
    };
    query?: {
      /** raw (default) or json */
      format?: string;
    };
    answer: FileBody | Response;
  };
  /** Fork a session */
  "POST /api/sessions/{id}/fork": {
    path: {
      id: string;
    };
    answer: ForkBody;
  };
  /** Interrupt the running turn; the session stays active */
  "POST /api/sessions/{id}/interrupt": {
    path: {
      id: string;
    };
    answer: SessionBody;
  };
  /** Get a session's limits, and the level that sets each */
  "GET /api/sessions/{id}/limits": {
    path: {
      id: string;
    };
    answer: LimitsBody;
  };
  /** Change a session's limits */
  "PATCH /api/sessions/{id}/limits": {
    path: {
      id: string;
    };
    body: LimitsChange;
    answer: LimitsBody;
  };
  /** Get the stderr of a session's claude */
  "GET /api/sessions/{id}/logs": {
    path: {
      id: string;
    };
    query?: {
      /** Only lines with a greater index (default -1) */
      after?: number;
    };
    answer: LogsBody;
  };
  /** List the messages of a session */
  "GET /api/sessions/{id}/messages": {
    path: {
      id: string;
    };
    query?: {
      /** Maximum number of messages, default 100 */
      limit?: number;
      /** Only those with a greater sequence */
      after?: number;
      /** Only those with a smaller sequence */
      before?: number;
      /** `asc` (the default), or `desc` for newest first */
      order?: string;
    };
    answer: MessagesBody;
  };
  /** Send a message and stream the answer (SSE) */
  "POST /api/sessions/{id}/messages": {
    path: {
      id: string;
    };
    body: SendMessage;
    answer: Response;
  };
  /** Pause a session */
  "POST /api/sessions/{id}/pause": {
    path: {
      id: string;
    };
    answer: SessionBody;
  };
  /** Resume a paused, stopped or failed session */
  "POST /api/sessions/{id}/resume": {
    path: {
      id: string;
    };
    answer: SessionBody;
  };
  /** Get a session's use of memory, CPU, processes and disk */
  "GET /api/sessions/{id}/stats": {
    path: {
      id: string;
    };
    answer: StatsBody;
  };
  /** Stop a session */
  "POST /api/sessions/{id}/stop": {
    path: {
      id: string;
    };
    answer: SessionBody;
  };
  /** Follow a session (SSE) */
  "GET /api/sessions/{id}/stream": {
    path: {
      id: string;
    };
    query?: {
      /** The same, for clients that cannot set headers */
      after?: string;
      /** Include stream_event and the deltas. When absent, the turn of the named frame has them if it was sent with them */
      includePartialMessages?: boolean;
    };
    header?: {
      /** The `id:` of the last frame received */
      "Last-Event-ID"?: string | null;
    };
    answer: Response;
  };
  /** Download a workspace as an archive */
  "GET /api/sessions/{id}/workspace": {
    path: {
      id: string;
    };
    answer: Response;
  };
  /** Unpack an archive into a workspace */
  "POST /api/sessions/{id}/workspace": {
    path: {
      id: string;
    };
    body: NewWorkspace;
    answer: MessageBody;
  };
  /** Get the limits of the tenant's sessions */
  "GET /api/tenant/limits": {
    answer: LimitsBody;
  };
  /** Change the limits of the tenant's sessions (admin) */
  "PATCH /api/tenant/limits": {
    body: LimitsChange;
    answer: LimitsBody;
  };
  /** Delete a tenant with all its data (admin) */
  "DELETE /api/tenants/{id}": {
    path: {
      id: string;
    };
    answer: TenantDeleted;
  };
  /** Get the limits of a tenant's sessions (admin, or the tenant itself) */
  "GET /api/tenants/{id}/limits": {
    path: {
      id: string;
    };
    answer: LimitsBody;
  };
  /** Change the limits of a tenant's sessions (admin) */
  "PATCH /api/tenants/{id}/limits": {
    path: {
      id: string;
    };
    body: LimitsChange;
    answer: LimitsBody;
  };
  /** List usage, newest first */
  "GET /api/usage": {
    query?: {
      sessionId?: string;
      agentName?: string;
      /** ISO-8601, exclusive */
      after?: string;
      /** ISO-8601, exclusive */
      before?: string;
      /** Maximum number of events, default 100 */
      limit?: number;
    };
    answer: UsageBody;
  };
  /** Get sums of usage */
  "GET /api/usage/stats": {
    query?: {
      sessionId?: string;
      agentName?: string;
      /** ISO-8601, exclusive */
      after?: string;
      /** ISO-8601, exclusive */
      before?: string;
    };
    answer: UsageStatsBody;
  };
  /** Get the state of the daemon. Public. */
  "GET /health": {
    answer: HealthBody;
  };
  /** Get the state as Prometheus metrics */
  "GET /metrics": {
    answer: Response;
  };
}
