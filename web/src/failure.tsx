import { t } from './i18n.ts'
import type { Failure } from './types.ts'

/** A failure as a sentence, the server's own words for it, and what to do next. */
export function FailureText({ failure, retry }: { failure: Failure; retry?: () => void }) {
  return (
    <div class="failure" role="alert">
      <p>
        {t(`fail_${failure.code}`)} {failure.retry !== undefined && t('retryIn', { n: failure.retry })}
      </p>
      {failure.detail && <p class="detail">{t('serverSays', { detail: failure.detail })}</p>}
      {retry && <button type="button" class="text" onClick={retry}>{t('retry')}</button>}
    </div>
  )
}
